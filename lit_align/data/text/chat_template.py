"""Rendering conversations in the tokenizer's chat template, with control tokens of the data kept as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from jinja2 import TemplateError

from lit_align.compat.transformers import template_date
from lit_align.data.formats.fields import Messages
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.errors import DataError, shown

_LONGEST_TEMPLATE, _LARGEST_GROWTH = 100_000, 20
"""Characters that a template may write by itself, and for each character of the messages."""
_DATA_ERRORS = (ValueError, TypeError, AttributeError, KeyError, OverflowError)
_TEMPLATE_ERRORS = (TemplateError, MemoryError, RecursionError, *_DATA_ERRORS)


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
            with template_date(self.encoder.date):
                rendered = self.encoder.tokenizer.apply_chat_template(
                    self.hide(list(messages)),
                    tools=self.hide(list(self.tools)) or None,
                    tokenize=False,
                    add_generation_prompt=opens_response,
                )
        except _TEMPLATE_ERRORS as error:
            calls = any(message.get("content", "") is None for message in messages)
            why = "; it expects a content, and a message that only calls tools has none" if calls else ""
            raise DataError(
                self.where, f"the chat template refuses this conversation: {shown(str(error))}{why}"
            ) from error
        limit = _LONGEST_TEMPLATE + _LARGEST_GROWTH * self.characters
        if len(rendered) > limit:
            raise DataError(
                self.where, f"the chat template writes {len(rendered)} characters; expected at most {limit}"
            )
        return str(rendered)

    def opened(self, prompt: Messages) -> str:
        """Render a prompt as generation sees it: opened for the response or, if its last turn is partial, up to there.

        Raises:
            DataError: the template rejects the conversation, or cannot continue a partial turn.
        """
        if prompt[-1]["role"] != "assistant":
            return self.render(prompt, opens_response=True)
        partial = {**prompt[-1], "content": f"{self.hide(prompt[-1]['content'] or '')}{self.edge}"}
        parts = self.render((*prompt[:-1], partial), opens_response=False).split(self.edge)
        if len(parts) != 2 or not parts[0].endswith(self.hide(prompt[-1]["content"] or "")):
            raise DataError(self.where, "the chat template cannot continue the prompt's last turn, the assistant's")
        return parts[0]

    def around_content(self, messages: Messages, index: int) -> tuple[str, str] | None:
        """Return what the template writes before and after a message's content; None unless it writes it once."""
        probe = {**messages[index], "content": self.edge}
        opens = index + 1 == len(messages) and messages[index]["role"] != "assistant"
        parts = self.render((*messages[:index], probe, *messages[index + 1 :]), opens_response=opens).split(self.edge)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def closing(self, prompt: Messages) -> str:
        """Return what follows the last message of a prompt: the end of its turn, and what opens the response."""
        around = None if prompt[-1]["role"] == "assistant" else self.around_content(prompt, len(prompt) - 1)
        return "" if around is None else around[1]

    def end_of_turn(self, text: str) -> int:
        """Return the position behind the first control token of a text; its end if there is none."""
        match = self.encoder.control_text.search(text)
        return len(text) if match is None else match.end()

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

    def reveal(self, text: str) -> str:
        """Restore the control tokens of the data, for an error message."""
        return "".join(piece.text for piece in self.pieces(text))

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


def read_date(text: str | None) -> date | None:
    """Read ``data.template_date``.

    Raises:
        ValueError: the text is no date.

    >>> read_date("2024-07-26")
    datetime.date(2024, 7, 26)
    """
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"data.template_date is {shown(text)}; expected a date such as 2024-07-26") from None
