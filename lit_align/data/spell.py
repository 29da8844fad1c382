"""A spelling is the text of a pair as the tokenizer shall see it: plain, or in the tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from jinja2 import TemplateError

from lit_align.data.errors import DataError, shown
from lit_align.data.prompts import place_in_chat, place_in_text
from lit_align.data.tokenizer import Encoder, Piece, Pieces
from lit_align.types import Message, PreferencePair

Messages = tuple[Message, ...]


@dataclass(frozen=True)
class SpelledPrompt:
    """A prompt around the place of its quality prompt; ``before`` and ``quality`` are empty where it has none."""

    before: Pieces
    quality: Pieces
    after: Pieces


@dataclass(frozen=True)
class SpelledPair:
    """A pair as pieces of text.

    Args:
        prompt: the prompt.
        chosen: the preferred response.
        rejected: the other one.
        prompted: the prompt with the quality prompt in it.
        adds_start: the prompt still needs the tokenizer's BOS.
        adds_end: each response still needs EOS; otherwise the template has ended it.
        notes: what was put right, or is worth counting.
    """

    prompt: SpelledPrompt
    chosen: Pieces
    rejected: Pieces
    prompted: SpelledPrompt | None
    adds_start: bool
    adds_end: tuple[bool, bool]
    notes: tuple[str, ...]


CONTROL_IN_TEXT = "control tokens spelled in the data, kept as text"
START_IN_TEXT = "BOS spelled at the start of the prompt, taken once"
END_IN_TEXT = "EOS spelled at the end of a response, taken once"


def spell(pair: PreferencePair, encoder: Encoder, quality: str | None) -> SpelledPair:
    """The pair as pieces of text.

    Args:
        pair: checked text or messages.
        encoder: the tokenizer, for its control tokens and its chat template.
        quality: the quality prompt; None for no prompted side.

    Raises:
        DataError: nothing is left of a response, or the chat template does not fit the conversation.
    """
    return _spell_text(pair, encoder, quality) if isinstance(pair.prompt, str) else _spell_chat(pair, encoder, quality)


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _spell_text(pair: PreferencePair, encoder: Encoder, quality: str | None) -> SpelledPair:
    written = {name: cast(str, getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
    kept = {name: encoder.without_end(text) for name, text in written.items() if name != "prompt"}
    kept["prompt"] = encoder.without_start(written["prompt"])
    for name, text in kept.items():
        if not text.strip():
            raise DataError(pair.where, f"found nothing but control tokens ({shown(written[name], 40)})", name)
    notes = [CONTROL_IN_TEXT] if any(map(encoder.control_text.search, kept.values())) else []
    notes += [START_IN_TEXT] if kept["prompt"] != written["prompt"] else []
    notes += [END_IN_TEXT] if any(kept[side] != written[side] for side in ("chosen", "rejected")) else []
    return SpelledPair(
        prompt=SpelledPrompt((), (), (Piece(kept["prompt"]),)),
        chosen=(Piece(kept["chosen"]),),
        rejected=(Piece(kept["rejected"]),),
        prompted=None if quality is None else _text_with_quality(kept["prompt"], quality),
        adds_start=True,
        adds_end=(True, True),
        notes=tuple(notes),
    )


def _text_with_quality(prompt: str, quality: str) -> SpelledPrompt:
    if not quality:
        return SpelledPrompt((), (), (Piece(prompt),))
    placed = place_in_text(prompt)
    return SpelledPrompt((Piece(placed.before),), (Piece(quality),), (Piece(placed.after),))


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _spell_chat(pair: PreferencePair, encoder: Encoder, quality: str | None) -> SpelledPair:
    prompt = cast(Messages, pair.prompt)
    written = (cast(Messages, pair.chosen), cast(Messages, pair.rejected))
    kept = tuple(_without_end(side, encoder) for side in written)
    template = _Template.around((*prompt, *kept[0], *kept[1]), encoder, pair.where, quality or "")
    opened = template.render(prompt, opens_response=True)
    chosen, rejected = (template.response(opened, (*prompt, *side)) for side in kept)
    notes = [CONTROL_IN_TEXT] if template.hidden else []
    notes += [END_IN_TEXT] if kept != written else []
    return SpelledPair(
        prompt=SpelledPrompt((), (), template.pieces(opened)),
        chosen=template.pieces(chosen),
        rejected=template.pieces(rejected),
        prompted=None if quality is None else template.with_quality(prompt, quality),
        adds_start=False,
        adds_end=(not template.has_end(chosen), not template.has_end(rejected)),
        notes=tuple(notes),
    )


def _without_end(side: Messages, encoder: Encoder) -> Messages:
    """A response whose last message does not spell EOS at its end."""
    return (*side[:-1], {**side[-1], "content": encoder.without_end(side[-1]["content"])})


@dataclass(frozen=True)
class _Template:
    """The tokenizer's chat template around messages whose control tokens are hidden from it.

    Args:
        encoder: the tokenizer.
        where: the row, for messages.
        edge: a character that occurs in none of the messages.
        hidden: the control tokens that the messages spell, each with a character of its own to stand for it.
    """

    encoder: Encoder
    where: str
    edge: str
    hidden: Mapping[str, str]

    @classmethod
    def around(cls, messages: Messages, encoder: Encoder, where: str, quality: str) -> _Template:
        """A template for these messages; the characters come from a private area of Unicode."""
        text = "".join([quality, *(message["content"] for message in messages)])
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in text)
        spelled = sorted(set(encoder.control_text.findall(text)))
        return cls(encoder, where, next(free), {word: next(free) for word in spelled})

    def render(self, messages: Messages, opens_response: bool) -> str:
        """The conversation in the template, control tokens of the data still hidden."""
        shielded = [{**message, "content": self._hide(message["content"])} for message in messages]
        try:
            rendered = self.encoder.tokenizer.apply_chat_template(
                shielded, tokenize=False, add_generation_prompt=opens_response
            )
        except (TemplateError, ValueError) as error:
            raise DataError(self.where, f"the chat template refuses this conversation: {shown(str(error))}") from error
        return str(rendered)

    def response(self, opened: str, messages: Messages) -> str:
        """What the template adds to an opened conversation, up to and with the token that ends the turn."""
        whole = self.render(messages, opens_response=False)
        if not whole.startswith(opened):
            raise DataError(
                self.where,
                "the chat template writes the prompt differently when a response follows; expected a prefix",
            )
        said = whole[len(opened) :].rstrip()
        if not self.encoder.control_text.sub("", said).strip():
            raise DataError(self.where, "nothing is left of the response in the chat template")
        return said

    def has_end(self, said: str) -> bool:
        """Whether the template ends the turn with a control token."""
        return any(found.end() == len(said) for found in self.encoder.control_text.finditer(said))

    def with_quality(self, messages: Messages, quality: str) -> SpelledPrompt:
        """The opened conversation with the quality prompt in its last user turn."""
        if not quality:
            return SpelledPrompt((), (), self.pieces(self.render(messages, opens_response=True)))
        try:
            placed = place_in_chat(messages, f"{self.edge}{quality}{self.edge}")
        except ValueError as error:
            raise DataError(self.where, str(error)) from error
        parts = self.render(placed, opens_response=True).split(self.edge)
        if len(parts) != 3:
            times = len(parts) // 2
            raise DataError(self.where, f"the chat template writes the last user turn {times} times; expected once")
        before, inner, after = map(self.pieces, parts)
        return SpelledPrompt(before, inner, after)

    def pieces(self, rendered: str) -> Pieces:
        """The template's text and the data's hidden control tokens, apart."""
        if not self.hidden:
            return (Piece(rendered, template=True),)
        words = {mark: word for word, mark in self.hidden.items()}
        parts = re.split(f"([{''.join(words)}])", rendered)
        return tuple(Piece(words.get(part, part), template=part not in words) for part in parts if part)

    def _hide(self, content: str) -> str:
        return self.encoder.control_text.sub(lambda found: self.hidden[found[0]], content)
