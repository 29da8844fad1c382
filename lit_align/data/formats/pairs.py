"""Formats with one pair per row: texts, dialogues in a single text, and lists of messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from lit_align.data.formats import fields
from lit_align.data.formats.base import PairFormat, RawRow
from lit_align.data.formats.columns import likely_name
from lit_align.data.formats.conversations import Score, check_prompt, first_difference, split_response, split_shared
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

    @override
    def pair(self, row: RawRow) -> PreferencePair:
        prompt, chosen, rejected = (fields.text(row, column) for column in self.columns)
        return PreferencePair(prompt, chosen, rejected, row.where, fields.extra(row))


@final
@dataclass(frozen=True)
class HumanAssistant(PairFormat):
    r"""Two dialogues as text, as in HH-RLHF. The response is the text after the last ``Assistant:``.

    >>> turns = "\n\nHuman: 2 + 2?\n\nAssistant:"
    >>> pair = HumanAssistant().pair(RawRow({"chosen": turns + " 4", "rejected": turns + " 5"}, "sums.jsonl:1"))
    >>> pair.prompt, pair.rejected
    ('\n\nHuman: 2 + 2?\n\nAssistant:', ' 5')
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")

    @override
    def pair(self, row: RawRow) -> PreferencePair:
        (prompt, chosen), (other, rejected) = (self._split(row, column) for column in self.columns)
        if prompt != other:
            difference = _first_text_difference(prompt, other)
            raise DataError(row.where, f"the two dialogues differ before the last response: {difference}")
        return PreferencePair(prompt, chosen, rejected, row.where, fields.extra(row))

    @staticmethod
    def _split(row: RawRow, column: str) -> tuple[str, str]:
        before, mark, response = fields.text(row, column).rpartition(ASSISTANT)
        if not mark or HUMAN not in before:
            meant = likely_name("prompt", [name for name in row.columns if name not in ("chosen", "rejected")])
            remedy = "" if meant is None else f"; if that is {meant!r} here, set data.columns: {{prompt: {meant}}}"
            raise DataError(
                row.where,
                f"found no '\\n\\nHuman: … \\n\\nAssistant: …' dialogue in {shown(row.columns[column], 60)}; "
                f"text without turns needs a column 'prompt' (format: pairs){remedy}",
                column,
            )
        return before + mark, response


@final
@dataclass(frozen=True)
class Chat(PairFormat):
    """Lists of messages with ``role`` and ``content``. The response is the assistant's part at the end.

    A side is either the response alone, with the messages before it in ``prompt``, or the whole conversation. In the
    second case both sides must agree before the response, and with ``prompt`` if the row has that column.

    Args:
        score: ``last_turn`` takes the assistant's last turn as the response; ``all_turns`` takes everything after the
            turns that both sides share.

    >>> ask = {"role": "user", "content": "2 + 2?"}
    >>> say = lambda text: [ask, {"role": "assistant", "content": text}]
    >>> Chat().pair(RawRow({"chosen": say("4"), "rejected": say("5")}, "sums.jsonl:1")).prompt
    ({'role': 'user', 'content': '2 + 2?'},)
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")
    score: Score = "last_turn"

    @override
    def pair(self, row: RawRow) -> PreferencePair:
        before = fields.prompt_messages(row)
        chosen, rejected = (fields.messages(row, column) for column in self.columns)
        if self.score == "all_turns":
            sides = split_shared(row, before, chosen, rejected)
            return PreferencePair(*sides, row.where, fields.extra(row), fields.tools(row))
        prompt, chosen = split_response(row, "chosen", before, chosen)
        other, rejected = split_response(row, "rejected", before, rejected)
        if prompt != other:
            difference = first_difference(prompt, other)
            raise DataError(row.where, f"the two conversations differ before the response: {difference}")
        check_prompt(row, before, prompt)
        return PreferencePair(prompt, chosen, rejected, row.where, fields.extra(row), fields.tools(row))


def _first_text_difference(first: str, second: str) -> str:
    """Describe the first place where two texts differ."""
    pairs = enumerate(zip(first, second, strict=False))
    start = next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
    return f"at character {start + 1}: {shown(first[start : start + 40])} and {shown(second[start : start + 40])}"
