"""Rendering conversations in the tokenizer's chat template, with control tokens of the data kept as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import TemplateError

from lit_align.data.formats.conversations import Score
from lit_align.data.formats.fields import Messages
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.errors import DataError, shown

REWRITTEN = "earlier turns that the chat template shortens when others follow; kept, not scored"
_LONGEST_TEMPLATE, _LARGEST_GROWTH = 100_000, 20
"""Characters that a template may write by itself, and for each character of the messages."""
_TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    OverflowError,
    MemoryError,
    RecursionError,
)


@dataclass(frozen=True)
class ChatTemplate:
    """The tokenizer's chat template, prepared for the messages of one pair.

    Control tokens that the messages spell are hidden from the template: each is replaced by a private Unicode
    character that occurs nowhere in the pair, and restored as plain text by ``pieces``.

    Args:
        encoder: the tokenizer.
        where: ``file:line`` of the row, for error messages.
        tools: JSON schemas of tools that are passed to the template.
        edge: a character that occurs in none of the messages.
        hidden: control token → the character that replaces it.
        characters: number of characters in all messages.
    """

    encoder: Encoder
    where: str
    tools: tuple[Mapping[str, Any], ...]
    edge: str
    hidden: Mapping[str, str]
    characters: int

    @classmethod
    def around(
        cls, parts: Iterable[Any], encoder: Encoder, where: str, tools: tuple[Mapping[str, Any], ...]
    ) -> ChatTemplate:
        """Prepare the template for a pair.

        Args:
            parts: all messages and texts that will be rendered.
            encoder: the tokenizer.
            where: ``file:line`` of the row.
            tools: JSON schemas of tools.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if encoder.template is None:
            raise ValueError(
                "the data holds conversations, but the tokenizer has no chat template: set data.chat_template to a "
                "file with one, or write the turns out as text"
            )
        text = "\n".join(_texts([*parts, *tools]))
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        control_tokens = sorted(set(encoder.control_text.findall(text)))
        return cls(encoder, where, tools, next(free), {token: next(free) for token in control_tokens}, len(text))

    def render(self, messages: Messages, opens_response: bool) -> str:
        """Render a conversation; control tokens of the data stay hidden.

        Args:
            messages: the conversation.
            opens_response: append what opens the assistant's turn.

        Raises:
            DataError: the template rejects the conversation, or writes far more text than it was given.
        """
        try:
            rendered = self.encoder.tokenizer.apply_chat_template(
                self.hide(list(messages)),
                tools=self.hide(list(self.tools)) or None,
                tokenize=False,
                add_generation_prompt=opens_response,
            )
        except _TEMPLATE_ERRORS as error:
            raise DataError(self.where, f"the chat template refuses this conversation: {shown(str(error))}") from error
        limit = _LONGEST_TEMPLATE + _LARGEST_GROWTH * self.characters
        if len(rendered) > limit:
            raise DataError(
                self.where, f"the chat template writes {len(rendered)} characters; expected at most {limit}"
            )
        return str(rendered)

    def around_content(self, messages: Messages, index: int) -> tuple[str, str] | None:
        """Return what the template writes before and after a message's content; None unless it writes it once."""
        probe = {**messages[index], "content": self.edge}
        opens = index + 1 == len(messages) and messages[index]["role"] != "assistant"
        parts = self.render((*messages[:index], probe, *messages[index + 1 :]), opens_response=opens).split(self.edge)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def closing(self, prompt: Messages) -> str:
        """Return what follows the last message of a prompt: the end of its turn, and what opens the response."""
        around = self.around_content(prompt, len(prompt) - 1)
        return "" if around is None else around[1]

    def ends_turn(self, text: str) -> bool:
        """Whether a text ends with a control token."""
        return any(match.end() == len(text) for match in self.encoder.control_text.finditer(text))

    def pieces(self, rendered: str) -> Pieces:
        """Separate the template's text from the control tokens of the data."""
        if not self.hidden:
            return (Piece(rendered, template=True),) if rendered else ()
        tokens = {mark: token for token, mark in self.hidden.items()}
        parts = re.split(f"([{''.join(tokens)}])", rendered)
        return tuple(Piece(tokens.get(part, part), template=part not in tokens) for part in parts if part)

    def hide(self, value: Any) -> Any:
        """Replace each control token in a text, or in all texts of a nested value."""
        if not self.hidden or value is None:
            return value
        if isinstance(value, str):
            return self.encoder.control_text.sub(lambda match: self.hidden[match[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts of a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


# ── responses of one or several turns ───────────────────────────────────────────────────────────────────────────────


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
    """

    segments: tuple[Segment, ...] = ()
    ended: bool = True
    rewritten: bool = False


class _Span(NamedTuple):
    """The scored text of a turn in the rendered conversation."""

    start: int
    end: int


def render_response(
    template: ChatTemplate, opened: str, prompt: Messages, response: Messages, score: Score
) -> RenderedResponse:
    """Render a response and mark its scored turns.

    Only what the assistant wrote is scored, with the token that ends its turn. What the template adds in front, such
    as an empty thinking block, and the turns of others are not.

    Args:
        template: the template, prepared for the pair.
        opened: the rendered prompt, opened for the response.
        prompt: the messages before the response.
        response: the messages of the response; the last one is the assistant's.
        score: score the last turn alone, or all of the assistant's.

    Raises:
        DataError: the template renders the prompt differently when a response follows, or writes nothing of the
            response.
    """
    messages = (*prompt, *response)
    whole = template.render(messages, opens_response=False).rstrip()
    if not whole.startswith(opened):
        raise _not_a_prefix(template)
    turns = [index for index in range(len(prompt), len(messages)) if messages[index]["role"] == "assistant"]
    scored = turns if score == "all_turns" else turns[-1:]
    spans = [_turn(template, whole, messages, index, opened if index == len(prompt) else None) for index in scored]
    kept = [span for span in spans if span is not None]
    texts = [whole[span.start : span.end] for span in kept]
    if not any(template.encoder.control_text.sub("", text).strip() for text in texts):
        raise DataError(template.where, "nothing is left of the response in the chat template")
    segments = _segments(template, whole, len(opened), kept)
    return RenderedResponse(segments, template.ends_turn(whole), rewritten=None in spans)


def _turn(template: ChatTemplate, whole: str, messages: Messages, index: int, opened: str | None) -> _Span | None:
    """Return the scored part of a turn; None for an earlier turn that the template shortens."""
    if opened is None:
        opened = template.render(messages[:index], opens_response=True)
    if not whole.startswith(opened):
        raise _not_a_prefix(template)
    last = index + 1 == len(messages)
    content = template.hide(str(messages[index]["content"])).strip()
    if last and whole[len(opened) :].lstrip().startswith(content):
        return _Span(len(opened), len(whole))
    span = _content(template, whole, messages, index, len(opened))
    if span is not None and whole[span.start : span.end].strip() == content:
        start = span.start if whole[len(opened) : span.start].strip() else len(opened)
        return _Span(start, len(whole) if last else _end_of_turn(template, whole, span.end))
    if last:
        return _Span(len(opened), len(whole))
    closed = template.render(messages[: index + 1], opens_response=False).rstrip()
    return _Span(len(opened), len(closed)) if whole.startswith(closed) else None


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


def _not_a_prefix(template: ChatTemplate) -> DataError:
    reason = "the chat template writes the prompt differently when a response follows; expected a prefix"
    return DataError(template.where, reason)
