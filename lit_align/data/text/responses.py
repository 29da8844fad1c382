"""Rendering responses of one or several turns in a chat template, and marking what is scored of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from lit_align.data.formats.conversations import Score
from lit_align.data.formats.fields import Messages
from lit_align.data.text.chat_template import ChatTemplate
from lit_align.data.text.tokenizer import Pieces
from lit_align.errors import DataError, shown

ScoreEnd: TypeAlias = Literal["turn", "all"]
"""What is scored behind the text of a response: the token that ends the turn, or all that the template writes."""
REWRITTEN = "earlier turns that the chat template shortens when others follow; kept, not scored"
WRITTEN_OUT = "responses that the chat template would shorten; written as in the row"
_SHOWN = 60


@dataclass(frozen=True)
class Segment:
    """A stretch of a response.

    Args:
        pieces: its text.
        scored: whether its tokens are scored.
    """

    pieces: Pieces
    scored: bool = True


@dataclass(frozen=True)
class RenderedResponse:
    """A response as text, from the opened prompt to the end of its last turn.

    Args:
        segments: its text in order; empty for the absent side of unpaired data.
        ended: whether the template ended the last turn with a control token.
        rewritten: whether a turn is not scored because the template shortens it.
        written_out: whether the last turn is written as in the row because the template would shorten it.
    """

    segments: tuple[Segment, ...] = ()
    ended: bool = True
    rewritten: bool = False
    written_out: bool = False


class _Span(NamedTuple):
    """The scored text of a turn in the rendered conversation."""

    start: int
    end: int


class _Conversation(NamedTuple):
    """A rendered conversation.

    Args:
        text: its text, up to the end of its last turn.
        start: position at which the scored text of the last turn begins.
        written_out: whether the last turn is written as in the row because the template would shorten it.
    """

    text: str
    start: int
    written_out: bool = False


def render_response(
    template: ChatTemplate,
    opened: str,
    prompt: Messages,
    response: Messages,
    score: Score = "last_turn",
    score_end: ScoreEnd = "turn",
) -> RenderedResponse:
    """Render a response and mark its scored turns.

    Only what the assistant wrote is scored, with the token that ends its turn. What the template adds in front, such
    as an empty thinking block, and the turns of others are not. The last turn follows what the template writes in
    front of it at generation time.

    Args:
        template: the template, prepared for the pair.
        opened: the rendered prompt, opened for the response.
        prompt: the messages before the response; its last one may be a partial turn that the response continues.
        response: the messages of the response; the last one is the assistant's.
        score: score the last turn alone, or all of the assistant's.
        score_end: keep and score what the template writes behind the token that ends the last turn.

    Raises:
        DataError: the template renders the prompt differently when a response follows, or writes nothing of the
            response.
    """
    messages, first = join_turns(prompt, response)
    last = len(messages) - 1
    in_front = opened if last == first else template.opened(messages[:last])
    if not in_front.startswith(opened):
        raise _not_a_prefix(template, opened, in_front)
    conversation = _conversation(template, in_front, messages, str(response[-1]["content"] or ""))
    whole = conversation.text
    if score_end == "turn":
        whole = whole.removesuffix(_behind_turn(template, whole, conversation.start, messages))
    scored = [index for index in range(first, last) if messages[index]["role"] == "assistant"]
    spans = [
        _turn(template, whole, messages, index, opened if index == first else None)
        for index in (scored if score == "all_turns" else ())
    ]
    spans.append(_Span(conversation.start, len(whole)))
    kept = [span for span in spans if span is not None]
    texts = [whole[span.start : span.end] for span in kept]
    if not any(template.encoder.control_text.sub("", text).strip() for text in texts):
        raise DataError(template.where, "nothing is left of the response in the chat template")
    segments = _segments(template, whole, len(opened), kept)
    return RenderedResponse(segments, template.ends_turn(whole), None in spans, conversation.written_out)


def join_turns(prompt: Messages, response: Messages) -> tuple[Messages, int]:
    """Join prompt and response, and return with them the position of the response's first turn.

    A partial turn of the assistant at the end of the prompt and the response's first message become one message.
    """
    if prompt[-1]["role"] != "assistant":
        return (*prompt, *response), len(prompt)
    content = f"{prompt[-1]['content'] or ''}{response[0]['content'] or ''}"
    return (*prompt[:-1], {**prompt[-1], **response[0], "content": content}, *response[1:]), len(prompt) - 1


# ── the last turn ───────────────────────────────────────────────────────────────────────────────────────────────────


def _conversation(template: ChatTemplate, opened: str, messages: Messages, answer: str) -> _Conversation:
    """Render a conversation whose last turn stands behind what the template writes in front of it for generation.

    Args:
        template: the template.
        opened: the rendered messages in front of the last one, opened for it.
        messages: the conversation.
        answer: what follows ``opened``: the content of the last message or, behind a partial turn, the rest of it.
    """
    whole = template.render(messages, opens_response=False).rstrip()
    answer = template.hide(answer)
    if whole.startswith(opened) and without_blanks(answer) in without_blanks(whole[len(opened) :]):
        return _Conversation(whole, _start(template, whole, opened, messages, answer.strip()))
    around = template.around_content(messages, len(messages) - 1)
    if whole.startswith(opened) and (around is None or set(messages[-1]) != {"role", "content"}):
        return _Conversation(whole, len(opened))
    tails = None if around is None else _tails(template, opened, messages, around[0])
    if around is None or tails is None:
        raise _not_a_prefix(template, opened, whole)
    alone, followed = tails
    lead = followed.removeprefix(alone) if followed.startswith(alone) else ""
    rest = answer if followed.startswith(alone) else _after_beginning(alone.removeprefix(followed), answer)
    if rest is None:
        raise _not_a_prefix(template, opened, whole)
    text = f"{opened}{lead}{rest}{around[1]}".rstrip()
    start = len(opened) + (len(lead) if lead.strip() else 0)
    return _Conversation(text, start, without_blanks(answer) not in without_blanks(whole))


def _start(template: ChatTemplate, whole: str, opened: str, messages: Messages, content: str) -> int:
    """Return where the scored text of the last turn begins; blanks that the template puts in front are scored."""
    if whole[len(opened) :].lstrip().startswith(content):
        return len(opened)
    span = _content(template, whole, messages, len(messages) - 1, len(opened))
    if span is None or whole[span.start : span.end].strip() != content:
        return len(opened)
    return span.start if whole[len(opened) : span.start].strip() else len(opened)


def _tails(template: ChatTemplate, opened: str, messages: Messages, before: str) -> tuple[str, str] | None:
    """Return what stands in front of the last turn for generation, and in the whole, up to a position that both share.

    Args:
        template: the template.
        opened: the rendered prompt, opened for the last turn; earlier turns may be rendered differently in it.
        messages: the conversation.
        before: what the template writes in front of the content in the whole.

    Returns:
        Two texts of which one begins like the other, or None: the prompt is written differently at its end.
    """
    if opened.startswith(before) or before.startswith(opened):
        return opened, before
    prompt = messages[:-1]
    if not prompt or prompt[-1]["role"] == "assistant":
        return None
    marked = (*prompt[:-1], {**prompt[-1], "content": template.edge})
    empty = {**messages[-1], "content": template.edge}
    alone = template.render(marked, opens_response=True).split(template.edge)
    followed = template.render((*marked, empty), opens_response=False).split(template.edge)
    if len(alone) != 2 or len(followed) != 3:
        return None
    alike = alone[1].startswith(followed[1]) or followed[1].startswith(alone[1])
    return (alone[1], followed[1]) if alike else None


def _after_beginning(beginning: str, answer: str) -> str | None:
    r"""Return a response without the beginning that the opened prompt holds; None if it does not begin like that.

    >>> _after_beginning("<think>\n", "<think>\nWell.</think>Yes."), _after_beginning("<think>\n", "Yes.")
    ('Well.</think>Yes.', None)
    """
    if answer.startswith(beginning):
        return answer.removeprefix(beginning)
    rest = answer.lstrip().removeprefix(beginning.strip())
    return None if rest == answer.lstrip() else rest.lstrip() if beginning[-1:].isspace() else rest


def _behind_turn(template: ChatTemplate, whole: str, start: int, messages: Messages) -> str:
    """Return what the template writes behind the control token that ends the last turn, if it writes anything."""
    ends = [match.span() for match in template.encoder.control_text.finditer(whole, start)]
    if ends and ends[-1][1] == len(whole):
        before = whole[start : ends[-1][0]].rstrip()
        if len(ends) < 2 or start + len(before) != ends[-2][1]:
            return ""
    plain = (*messages[:-1], {"role": "assistant", "content": template.edge})
    around = template.around_content(plain, len(plain) - 1)
    after = "" if around is None else around[1].rstrip()
    behind = after[template.end_of_turn(after) :]
    return behind if whole.endswith(after) else ""


# ── earlier turns ───────────────────────────────────────────────────────────────────────────────────────────────────


def _turn(template: ChatTemplate, whole: str, messages: Messages, index: int, opened: str | None) -> _Span | None:
    """Return the scored part of an earlier turn; None if the template writes it differently when others follow."""
    if opened is None:
        opened = template.opened(messages[:index])
    if not whole.startswith(opened):
        return None
    content = template.hide(str(messages[index]["content"] or "")).strip()
    span = _content(template, whole, messages, index, len(opened))
    if span is not None and whole[span.start : span.end].strip() == content:
        start = span.start if whole[len(opened) : span.start].strip() else len(opened)
        return _Span(start, _end_of_turn(template, whole, span.end))
    closed = template.render(messages[: index + 1], opens_response=False).rstrip()
    whole_content = without_blanks(content) in without_blanks(closed[len(opened) :])
    return _Span(len(opened), len(closed)) if whole.startswith(closed) and whole_content else None


def _content(template: ChatTemplate, whole: str, messages: Messages, index: int, start: int) -> _Span | None:
    """Locate the content of a message; None if the message has other fields, or is rendered differently."""
    if set(messages[index]) != {"role", "content"}:
        return None
    around = template.around_content(messages, index)
    if around is None:
        return None
    before, after = around[0], around[1].rstrip()
    fits = start <= len(before) <= len(whole) - len(after)
    if not (fits and whole.startswith(before) and whole.endswith(after)):
        return None
    return _Span(len(before), len(whole) - len(after))


def _end_of_turn(template: ChatTemplate, whole: str, end: int) -> int:
    """Return the position after the control token that ends a turn, or the end of its text if there is none."""
    blanks = len(whole) - end - len(whole[end:].lstrip())
    match = template.encoder.control_text.match(whole, end + blanks)
    return end if match is None else match.end()


def _segments(template: ChatTemplate, whole: str, start: int, spans: list[_Span]) -> tuple[Segment, ...]:
    """Cut the response at the boundaries of its scored spans."""
    segments: list[Segment] = []
    for span in spans:
        segments.append(Segment(template.pieces(whole[start : span.start]), scored=False))
        segments.append(Segment(template.pieces(whole[span.start : span.end])))
        start = span.end
    return tuple(segment for segment in segments if segment.pieces)


def without_blanks(text: str) -> str:
    """Remove all blanks and line breaks from a text."""
    return "".join(text.split())


def _not_a_prefix(template: ChatTemplate, opened: str, whole: str) -> DataError:
    """Return the error for a prompt that the template writes differently; it shows both at the first difference."""
    pairs = enumerate(zip(opened, whole, strict=False))
    place = next((index for index, (a, b) in pairs if a != b), min(len(opened), len(whole)))
    alone, followed = (shown(template.reveal(text[place : place + _SHOWN]), _SHOWN) for text in (opened, whole))
    reason = (
        f"the chat template writes the prompt differently when a response follows: from character {place + 1} on "
        f"{alone} for generation, and {followed} with the response; expected the same text. Set data.chat_template to "
        "a file with a template that writes both alike"
    )
    return DataError(template.where, reason)
