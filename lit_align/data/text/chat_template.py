"""A chat template turns messages into text; what the messages spell is hidden from it, so that it stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jinja2 import TemplateError

from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.errors import DataError, shown
from lit_align.types import Message

Messages: TypeAlias = tuple[Message, ...]
LONGEST_TEMPLATE, LARGEST_GROWTH = 100_000, 20
"""Characters that a template may write by itself, and for each character that it is given."""
_REFUSALS = (
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
    """The tokenizer's chat template around the messages of one pair.

    Args:
        encoder: the tokenizer.
        where: the row, for messages.
        tools: what the template is told of tools.
        edge: a character that occurs in none of the messages.
        hidden: the control tokens that the messages spell, each with a character of its own to stand for it.
        given: characters in all of them.
    """

    encoder: Encoder
    where: str
    tools: tuple[Mapping[str, Any], ...]
    edge: str
    hidden: Mapping[str, str]
    given: int

    @classmethod
    def around(
        cls, parts: Iterable[Any], encoder: Encoder, where: str, tools: tuple[Mapping[str, Any], ...]
    ) -> ChatTemplate:
        """A template for these parts of a pair; the characters come from a private area of Unicode.

        Args:
            parts: messages, texts and tools: everything that will be rendered.
            encoder: the tokenizer.
            where: the row.
            tools: what the template is told of tools.

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
        spelled = sorted(set(encoder.control_text.findall(text)))
        return cls(encoder, where, tools, next(free), {word: next(free) for word in spelled}, len(text))

    def render(self, messages: Messages, opens_response: bool) -> str:
        """The conversation in the template, control tokens of the data still hidden."""
        try:
            rendered = self.encoder.tokenizer.apply_chat_template(
                self.hide(list(messages)),
                tools=self.hide(list(self.tools)) or None,
                tokenize=False,
                add_generation_prompt=opens_response,
            )
        except _REFUSALS as error:
            raise DataError(self.where, f"the chat template refuses this conversation: {shown(str(error))}") from error
        most = LONGEST_TEMPLATE + LARGEST_GROWTH * self.given
        if len(rendered) > most:
            raise DataError(
                self.where, f"the chat template writes {len(rendered)} characters; expected at most {most}"
            )
        return str(rendered)

    def around_content(self, messages: Messages, place: int) -> tuple[str, str] | None:
        """What the template writes before and behind the content of a message; None unless it writes it just once."""
        probe = {**messages[place], "content": self.edge}
        opens = place + 1 == len(messages) and messages[place]["role"] != "assistant"
        parts = self.render((*messages[:place], probe, *messages[place + 1 :]), opens_response=opens).split(self.edge)
        return (parts[0], parts[1]) if len(parts) == 2 else None

    def closing(self, prompt: Messages) -> str:
        """What follows the last message of a prompt: its end of turn, and the words that open the response."""
        around = self.around_content(prompt, len(prompt) - 1)
        return "" if around is None else around[1]

    def ends_turn(self, text: str) -> bool:
        """Whether a text ends with a control token."""
        return any(found.end() == len(text) for found in self.encoder.control_text.finditer(text))

    def pieces(self, rendered: str) -> Pieces:
        """The template's text and the data's hidden control tokens, apart."""
        if not self.hidden:
            return (Piece(rendered, template=True),) if rendered else ()
        words = {mark: word for word, mark in self.hidden.items()}
        parts = re.split(f"([{''.join(words)}])", rendered)
        return tuple(Piece(words.get(part, part), template=part not in words) for part in parts if part)

    def hide(self, value: Any) -> Any:
        """A text, or all texts of a nested value, with a character in place of each control token."""
        if not self.hidden or value is None:
            return value
        if isinstance(value, str):
            return self.encoder.control_text.sub(lambda found: self.hidden[found[0]], value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        return [self.hide(item) for item in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    """All texts of a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
