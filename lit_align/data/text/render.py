"""A spelling is the text of a pair as the tokenizer shall see it: plain, or in the tokenizer's chat template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from lit_align.data.formats.conversations import Score
from lit_align.data.formats.pairs import ASSISTANT, HUMAN
from lit_align.data.text.chat_template import ChatTemplate, Messages
from lit_align.data.text.tokenizer import Encoder, Piece, Pieces
from lit_align.data.text.turns import REWRITTEN, SpelledResponse, spell_response, text_response
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair


@dataclass(frozen=True)
class Manner:
    """What is asked of a spelling.

    Args:
        quality: the quality prompt; None for no prompted side.
        score: which of the assistant's turns in a response are scored.
        closing: the end of the prompt shall be known, because a cut leaves it.
    """

    quality: str | None = None
    score: Score = "last_turn"
    closing: bool = False


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
        chosen: the preferred response; nothing in unpaired data that has none.
        rejected: the other one; as ``chosen``.
        prompted: the prompt with the quality prompt in it.
        closing: the end of the prompt, which opens the response; it stands in ``prompt`` as well. Only if asked for.
        adds_start: the prompt still needs the tokenizer's BOS.
        notes: what was put right, or is worth counting.
    """

    prompt: SpelledPrompt
    chosen: SpelledResponse
    rejected: SpelledResponse
    prompted: SpelledPrompt | None
    closing: Pieces
    adds_start: bool
    notes: tuple[str, ...]

    @property
    def sides(self) -> tuple[SpelledResponse, SpelledResponse]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


CONTROL_IN_TEXT = "control tokens spelled in the data, kept as text"
START_IN_TEXT = "BOS spelled at the start of the prompt, taken once"
END_IN_TEXT = "EOS spelled at the end of a response, taken once"


def spell(pair: PreferencePair, encoder: Encoder, manner: Manner) -> SpelledPair:
    """The pair as pieces of text.

    Args:
        pair: checked text or messages.
        encoder: the tokenizer, for its control tokens and its chat template.
        manner: what is asked of it.

    Raises:
        DataError: nothing is left of a response, or the chat template does not fit the conversation.
    """
    if isinstance(pair.prompt, str):
        return _spell_text(pair, encoder, manner)
    return _spell_chat(pair, encoder, manner)


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _spell_text(pair: PreferencePair, encoder: Encoder, manner: Manner) -> SpelledPair:
    parts = {name: getattr(pair, name) for name in ("prompt", "chosen", "rejected")}
    written = {name: cast(str, part) for name, part in parts.items() if part is not None}
    kept = {name: encoder.without_end(text) for name, text in written.items() if name != "prompt"}
    kept["prompt"] = encoder.without_start(written["prompt"])
    for name, text in kept.items():
        if not text.strip():
            raise DataError(pair.where, f"found nothing but control tokens ({shown(written[name], 40)})", name)
    notes = [CONTROL_IN_TEXT] if any(map(encoder.control_text.search, kept.values())) else []
    notes += [START_IN_TEXT] if kept["prompt"] != written["prompt"] else []
    sides = [side for side in ("chosen", "rejected") if side in kept]
    notes += [END_IN_TEXT] if any(kept[side] != written[side] for side in sides) else []
    return SpelledPair(
        prompt=SpelledPrompt((), (), (Piece(kept["prompt"]),)),
        chosen=text_response(kept.get("chosen")),
        rejected=text_response(kept.get("rejected")),
        prompted=None if manner.quality is None else _text_with_quality(kept["prompt"], manner.quality),
        closing=(Piece(ASSISTANT),) if manner.closing and kept["prompt"].endswith(ASSISTANT) else (),
        adds_start=True,
        notes=tuple(notes),
    )


def _text_with_quality(prompt: str, quality: str) -> SpelledPrompt:
    if not quality:
        return SpelledPrompt((), (), (Piece(prompt),))
    placed = place_in_text(prompt)
    return SpelledPrompt((Piece(placed.before),), (Piece(quality),), (Piece(placed.after),))


# ── chat ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _spell_chat(pair: PreferencePair, encoder: Encoder, manner: Manner) -> SpelledPair:
    prompt = cast(Messages, pair.prompt)
    written = (cast(Messages, pair.chosen or ()), cast(Messages, pair.rejected or ()))
    kept = tuple(_without_end(side, encoder) for side in written)
    parts = (*prompt, *kept[0], *kept[1], manner.quality or "")
    template = ChatTemplate.around(parts, encoder, pair.where, pair.tools)
    opened = template.render(prompt, opens_response=True)
    chosen, rejected = (
        spell_response(template, opened, prompt, side, manner.score) if side else SpelledResponse() for side in kept
    )
    notes = [CONTROL_IN_TEXT] if template.hidden else []
    notes += [END_IN_TEXT] if kept != written else []
    notes += [REWRITTEN] if chosen.rewritten or rejected.rewritten else []
    return SpelledPair(
        prompt=SpelledPrompt((), (), template.pieces(opened)),
        chosen=chosen,
        rejected=rejected,
        prompted=None if manner.quality is None else _chat_with_quality(template, prompt, manner.quality),
        closing=template.pieces(template.closing(prompt)) if manner.closing else (),
        adds_start=False,
        notes=tuple(notes),
    )


def _without_end(side: Messages, encoder: Encoder) -> Messages:
    """A response whose last message does not spell EOS at its end; one that is not there stays so."""
    if not side:
        return side
    return (*side[:-1], {**side[-1], "content": encoder.without_end(side[-1]["content"])})


def _chat_with_quality(template: ChatTemplate, messages: Messages, quality: str) -> SpelledPrompt:
    """The opened conversation with the quality prompt in its last user turn."""
    if not quality:
        return SpelledPrompt((), (), template.pieces(template.render(messages, opens_response=True)))
    try:
        placed = place_in_chat(messages, f"{template.edge}{quality}{template.edge}")
    except ValueError as error:
        raise DataError(template.where, str(error)) from error
    parts = template.render(placed, opens_response=True).split(template.edge)
    if len(parts) != 3:
        times = len(parts) // 2
        raise DataError(template.where, f"the chat template writes the last user turn {times} times; expected once")
    before, inner, after = map(template.pieces, parts)
    return SpelledPrompt(before, inner, after)


QUALITY_PROMPT = (
    "Please generate a response with a usefulness rating of 100 out of 100 for the following query. "
    "Note that the response should be harmless. The term 100 indicates the level of usefulness, "
    "where 100 is the maximum and 1 is the minimum. Query:"
)
"""The text of arXiv:2405.21040."""


@dataclass(frozen=True)
class Placed:
    """A text prompt with p in it: what stands before p, and what stands behind it."""

    before: str
    after: str


def place_in_text(prompt: str) -> Placed:
    r"""Where p goes in a text prompt: in front of it, or of the last human turn if it is a dialogue.

    Args:
        prompt: the prompt without p.

    >>> place_in_text("2 + 2 =")
    Placed(before='', after=' 2 + 2 =')
    >>> place_in_text("\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: 2 + 2?\n\nAssistant:")
    Placed(before='\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: ', after=' 2 + 2?\n\nAssistant:')
    """
    before, mark, last = prompt.rpartition(HUMAN)
    if not mark or not prompt.endswith(ASSISTANT):
        return Placed("", f" {prompt}")
    return Placed(f"{before}{mark} ", f" {last.removeprefix(' ')}")


def place_in_chat(prompt: Messages, quality: str) -> Messages:
    """The conversation with p in its last user turn, in front of the turn's text.

    Args:
        prompt: the messages before the response.
        quality: the text of p.

    Raises:
        ValueError: no turn of the conversation is the user's.

    >>> place_in_chat(({"role": "user", "content": "2 + 2?"},), "Answer well:")
    ({'role': 'user', 'content': 'Answer well: 2 + 2?'},)
    """
    turns = [number for number, message in enumerate(prompt) if message["role"] == "user"]
    if not turns:
        raise ValueError("the conversation has no user turn to put the quality prompt in")
    last = turns[-1]
    asked = {**prompt[last], "content": f"{quality} {prompt[last]['content']}"}
    return (*prompt[:last], asked, *prompt[last + 1 :])
