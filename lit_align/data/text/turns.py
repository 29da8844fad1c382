"""The turns of a response: which stretches of it the assistant wrote, and which of these are scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lit_align.data.formats.conversations import Score
from lit_align.data.text.chat_template import ChatTemplate, Messages
from lit_align.data.text.tokenizer import Piece, Pieces
from lit_align.errors import DataError

REWRITTEN = "earlier turns that the chat template shortens once others follow; kept, not scored"


@dataclass(frozen=True)
class Segment:
    """A stretch of a response.

    Args:
        pieces: its text.
        scored: whether its tokens are.
    """

    pieces: Pieces
    scored: bool = True


Segments: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True)
class SpelledResponse:
    """A response as the template writes it, from the opened prompt to the end of its last turn.

    Args:
        segments: its text, one stretch after the other; none where unpaired data has no such side.
        ended: the template has ended the last turn with a control token.
        rewritten: a turn is not scored because the template shortens it.
    """

    segments: Segments = ()
    ended: bool = True
    rewritten: bool = False


@dataclass(frozen=True)
class _Span:
    """Where a turn's scored text stands in the rendered conversation."""

    start: int
    end: int


def spell_response(
    template: ChatTemplate, opened: str, prompt: Messages, said: Messages, score: Score
) -> SpelledResponse:
    """A response with its scored turns marked.

    Only what the assistant says is scored, and the token that ends its turn; not what the template puts in front of
    it by itself, such as an empty stretch of thinking, nor the turns of others in between.

    Args:
        template: the template, with the conversation's control tokens hidden.
        opened: the prompt in the template, opened for the response.
        prompt: the messages before the response.
        said: the response's messages; the last one is the assistant's.
        score: its last turn alone, or all of the assistant's.

    Raises:
        DataError: the template writes the prompt otherwise when a response follows, or leaves nothing of it.
    """
    messages = (*prompt, *said)
    whole = template.render(messages, opens_response=False).rstrip()
    if not whole.startswith(opened):
        raise _not_a_prefix(template)
    places = [place for place in range(len(prompt), len(messages)) if messages[place]["role"] == "assistant"]
    wanted = places if score == "all_turns" else places[-1:]
    found = [_turn(template, whole, messages, place, opened if place == len(prompt) else None) for place in wanted]
    spans = [span for span in found if span is not None]
    texts = [whole[span.start : span.end] for span in spans]
    if not any(template.encoder.control_text.sub("", text).strip() for text in texts):
        raise DataError(template.where, "nothing is left of the response in the chat template")
    segments = _segments(template, whole, len(opened), spans)
    return SpelledResponse(segments, template.ends_turn(whole), rewritten=None in found)


def _turn(template: ChatTemplate, whole: str, messages: Messages, place: int, opened: str | None) -> _Span | None:
    """The scored part of the turn at a place; None for an earlier one that the template shortens."""
    if opened is None:
        opened = template.render(messages[:place], opens_response=True)
    if not whole.startswith(opened):
        raise _not_a_prefix(template)
    last = place + 1 == len(messages)
    content = template.hide(str(messages[place]["content"])).strip()
    if last and whole[len(opened) :].lstrip().startswith(content):
        return _Span(len(opened), len(whole))
    span = _content(template, whole, messages, place, len(opened))
    if span is not None and whole[span.start : span.end].strip() == content:
        start = span.start if whole[len(opened) : span.start].strip() else len(opened)
        return _Span(start, len(whole) if last else _end_of_turn(template, whole, span.end))
    if last:
        return _Span(len(opened), len(whole))
    closed = template.render(messages[: place + 1], opens_response=False).rstrip()
    return _Span(len(opened), len(closed)) if whole.startswith(closed) else None


def _content(template: ChatTemplate, whole: str, messages: Messages, place: int, start: int) -> _Span | None:
    """Where a message's content stands; None for one that is more than its content, or is written differently."""
    if set(messages[place]) != {"role", "content"}:
        return None
    around = template.around_content(messages, place)
    if around is None:
        return None
    before, behind = around[0], around[1].rstrip()
    fits = start <= len(before) <= len(whole) - len(behind)
    if not (fits and whole.startswith(before) and whole.endswith(behind)):
        return None
    return _Span(len(before), len(whole) - len(behind))


def _end_of_turn(template: ChatTemplate, whole: str, end: int) -> int:
    """Behind the control token that ends a turn, or behind its text where there is none."""
    blanks = len(whole) - end - len(whole[end:].lstrip())
    found = template.encoder.control_text.match(whole, end + blanks)
    return end if found is None else found.end()


def _segments(template: ChatTemplate, whole: str, start: int, spans: list[_Span]) -> Segments:
    """The whole response, cut at the ends of what is scored."""
    segments: list[Segment] = []
    for span in spans:
        segments.append(Segment(template.pieces(whole[start : span.start]), scored=False))
        segments.append(Segment(template.pieces(whole[span.start : span.end])))
        start = span.end
    return tuple(segment for segment in segments if segment.pieces)


def _not_a_prefix(template: ChatTemplate) -> DataError:
    reason = "the chat template writes the prompt differently when a response follows; expected a prefix"
    return DataError(template.where, reason)


def text_response(text: str | None) -> SpelledResponse:
    """A response without a template; EOS is still to come.

    Args:
        text: what was said; None where there is no such side.
    """
    return SpelledResponse() if text is None else SpelledResponse((Segment((Piece(text),)),), ended=False)
