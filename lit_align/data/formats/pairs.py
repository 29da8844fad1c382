"""The formats whose rows are one pair each: texts, dialogues in one text, and conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from lit_align.data.formats import conversations
from lit_align.data.formats import fields as cells
from lit_align.data.formats.base import PairFormat
from lit_align.data.formats.columns import suggestion
from lit_align.data.formats.conversations import Score, check_prompt, first_difference
from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


@final
@dataclass(frozen=True)
class Pairs(PairFormat):
    """Three columns of text: ``prompt``, ``chosen``, ``rejected``.

    >>> row = RawRow({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "sums.jsonl:1")
    >>> Pairs().pair(row).chosen
    ' 4'
    """

    columns: ClassVar[Sequence[str]] = ("prompt", "chosen", "rejected")

    def pair(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        return PreferencePair(
            prompt=cells.text(row, "prompt"),
            chosen=cells.text(row, "chosen"),
            rejected=cells.text(row, "rejected"),
            where=row.where,
            extra=cells.extra(row),
        )


@final
@dataclass(frozen=True)
class HumanAssistant(PairFormat):
    r"""Two whole dialogues in one text each, as in HH-RLHF; the response is what follows the last ``Assistant:``.

    >>> turns = "\n\nHuman: 2 + 2?\n\nAssistant:"
    >>> pair = HumanAssistant().pair(RawRow({"chosen": turns + " 4", "rejected": turns + " 5"}, "sums.jsonl:1"))
    >>> pair.prompt, pair.rejected
    ('\n\nHuman: 2 + 2?\n\nAssistant:', ' 5')
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")

    def pair(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        (prompt, chosen), (other, rejected) = (self._split(row, column) for column in self.columns)
        if prompt != other:
            raise DataError(row.where, f"the two dialogues differ before the last response: {_differ(prompt, other)}")
        return PreferencePair(prompt, chosen, rejected, row.where, cells.extra(row))

    @staticmethod
    def _split(row: RawRow, column: str) -> tuple[str, str]:
        before, mark, response = cells.text(row, column).rpartition(ASSISTANT)
        if not mark or HUMAN not in before:
            raise DataError(
                row.where,
                f"found no '\\n\\nHuman: … \\n\\nAssistant: …' dialogue in {shown(row.columns[column], 60)}; "
                f"text without turns needs a column 'prompt' (format: pairs){suggestion('prompt', list(row.columns))}",
                column,
            )
        return before + mark, response


@final
@dataclass(frozen=True)
class Chat(PairFormat):
    """Lists of messages with ``role`` and ``content``; a response is the assistant's turn at the end.

    Either a side is the response alone and ``prompt`` holds the messages before it, or a side is the whole
    conversation; then both sides must agree up to the response, and with ``prompt`` if there is one.

    Args:
        score: ``last_turn`` of the assistant's is the response, or ``all_turns`` behind what both sides share.

    >>> ask = {"role": "user", "content": "2 + 2?"}
    >>> say = lambda text: [ask, {"role": "assistant", "content": text}]
    >>> Chat().pair(RawRow({"chosen": say("4"), "rejected": say("5")}, "sums.jsonl:1")).prompt
    ({'role': 'user', 'content': '2 + 2?'},)
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")
    score: Score = "last_turn"

    def pair(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        before = cells.asked(row)
        if self.score == "all_turns":
            both = (cells.messages(row, column) for column in self.columns)
            shared = conversations.split_shared(row, before, *both)
            sides = (shared.prompt, shared.chosen, shared.rejected)
            return PreferencePair(*sides, row.where, cells.extra(row), cells.tools(row))
        (prompt, chosen), (other, rejected) = (
            conversations.split(row, column, before, cells.messages(row, column)) for column in self.columns
        )
        if prompt != other:
            reason = f"the two conversations differ before the response: {first_difference(prompt, other)}"
            raise DataError(row.where, reason)
        check_prompt(row, before, prompt)
        return PreferencePair(prompt, chosen, rejected, row.where, cells.extra(row), cells.tools(row))


def _differ(first: str, second: str) -> str:
    """The first place where two texts differ, with a little of each."""
    pairs = enumerate(zip(first, second, strict=False))
    place = next((number for number, (a, b) in pairs if a != b), min(len(first), len(second)))
    return f"at character {place + 1}: {shown(first[place : place + 40])} and {shown(second[place : place + 40])}"
