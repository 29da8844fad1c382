"""A format says how a raw row spells its prompt and its two responses."""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, final

from lit_align.data.errors import DataError, kind, shown
from lit_align.data.rows import RawRow
from lit_align.types import Message, PreferencePair, Text

FormatName: TypeAlias = Literal["auto", "pairs", "chat", "hh"]
Messages: TypeAlias = tuple[Message, ...]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
ROLES = ("system", "developer", "user", "assistant", "tool")
_NAMED = ("prompt", "chosen", "rejected")
_MADE_ELSEWHERE = re.compile(
    r"(prompt|chosen|rejected)_(input_ids|ids|token_ids|labels|attention_mask)"
    r"|ref(erence)?_(chosen|rejected)_log(p|ps|probs?)"
)


class Format(ABC):
    """How the rows of a file become pairs. Prompts are explicit or come from turns, never from common characters.

    Class attributes:
        columns: the columns that every row must have.
    """

    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def __call__(self, row: RawRow) -> PreferencePair:
        """The pair of a row that has all ``columns``.

        Raises:
            DataError: the row is of another format, or incomplete.
        """


@final
@dataclass(frozen=True)
class Pairs(Format):
    """Three columns of text: ``prompt``, ``chosen``, ``rejected``.

    >>> row = RawRow({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "sums.jsonl:1")
    >>> Pairs()(row).chosen
    ' 4'
    """

    columns: ClassVar[Sequence[str]] = _NAMED

    def __call__(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        return PreferencePair(
            prompt=_text(row, "prompt"),
            chosen=_text(row, "chosen"),
            rejected=_text(row, "rejected"),
            where=row.where,
            extra=_extra(row),
        )


@final
@dataclass(frozen=True)
class HumanAssistant(Format):
    r"""Two whole dialogues in one text each, as in HH-RLHF; the response is what follows the last ``Assistant:``.

    >>> turns = "\n\nHuman: 2 + 2?\n\nAssistant:"
    >>> pair = HumanAssistant()(RawRow({"chosen": turns + " 4", "rejected": turns + " 5"}, "sums.jsonl:1"))
    >>> pair.prompt, pair.rejected
    ('\n\nHuman: 2 + 2?\n\nAssistant:', ' 5')
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")

    def __call__(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        (prompt, chosen), (other, rejected) = (self._split(row, column) for column in self.columns)
        if prompt != other:
            raise DataError(row.where, f"the two dialogues differ before the last response: {_differ(prompt, other)}")
        return PreferencePair(prompt, chosen, rejected, row.where, _extra(row))

    @staticmethod
    def _split(row: RawRow, column: str) -> tuple[str, str]:
        before, mark, response = _text(row, column).rpartition(ASSISTANT)
        if not mark or HUMAN not in before:
            raise DataError(
                row.where,
                f"found no '\\n\\nHuman: … \\n\\nAssistant: …' dialogue in {shown(row.columns[column], 60)}; "
                "text without turns needs a column 'prompt' (format: pairs)",
                column,
            )
        return before + mark, response


@final
@dataclass(frozen=True)
class Chat(Format):
    """Lists of messages with ``role`` and ``content``; a response is the assistant's turn at the end.

    Either a side is the response alone and ``prompt`` holds the messages before it, or a side is the whole
    conversation; then both sides must agree up to the response, and with ``prompt`` if there is one.

    >>> ask = {"role": "user", "content": "2 + 2?"}
    >>> say = lambda text: [ask, {"role": "assistant", "content": text}]
    >>> Chat()(RawRow({"chosen": say("4"), "rejected": say("5")}, "sums.jsonl:1")).prompt
    ({'role': 'user', 'content': '2 + 2?'},)
    """

    columns: ClassVar[Sequence[str]] = ("chosen", "rejected")

    def __call__(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        given = row.columns.get("prompt")
        before = () if given is None else _asked(given) if isinstance(given, str) else _messages(row, "prompt")
        (prompt, chosen), (other, rejected) = (self._split(row, column, before) for column in self.columns)
        if prompt != other:
            raise DataError(row.where, f"the two conversations differ before the response: {_turn(prompt, other)}")
        if before and prompt[-len(before) :] != before:
            raise DataError(row.where, f"not the conversation's: {_turn(before, prompt)}", "prompt")
        return PreferencePair(prompt, chosen, rejected, row.where, _extra(row))

    @staticmethod
    def _split(row: RawRow, column: str, before: Messages) -> tuple[Messages, Messages]:
        """The messages before the response, and the response: the assistant's turns at the end."""
        said = _messages(row, column)
        whole = before + said if said[0]["role"] == "assistant" else said
        end = len(whole)
        while end and whole[end - 1]["role"] == "assistant":
            end -= 1
        if end == len(whole):
            raise DataError(
                row.where, f"the last message is the {whole[-1]['role']}'s; expected the assistant's", column
            )
        if end == 0:
            raise DataError(row.where, "the response has no prompt: no message stands before it", column)
        return whole[:end], whole[end:]


FORMATS: Mapping[str, Format] = {"pairs": Pairs(), "chat": Chat(), "hh": HumanAssistant()}


def detect(row: RawRow) -> str:
    """Name of the format that the columns of a file's first row speak for.

    >>> detect(RawRow({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "sums.jsonl:1"))
    'pairs'
    """
    if any(isinstance(row.columns.get(name), list) for name in _NAMED):
        return "chat"
    return "pairs" if "prompt" in row.columns else "hh"


def read_pair(row: RawRow, layout: Format) -> PreferencePair:
    """The pair of a row, checked.

    Args:
        row: the row as it was read.
        layout: the format of its file.

    Raises:
        DataError: the row cannot be used.
    """
    for name in layout.columns:
        if name not in row.columns:
            raise DataError(row.where, _missing(name, list(row.columns)))
    foreign = [name for name in row.columns if _MADE_ELSEWHERE.fullmatch(name)]
    if foreign:
        raise DataError(
            row.where,
            f"columns {shown(foreign)} hold token ids or log-probabilities made elsewhere; expected text alone, "
            "because nothing here can check them against it",
        )
    pair = layout(row)
    for column in _NAMED:
        _check_filled(pair, column)
    if pair.chosen == pair.rejected:
        raise DataError(row.where, f"chosen and rejected are the same: {shown(pair.chosen, 60)}")
    return pair


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_filled(pair: PreferencePair, column: str) -> None:
    part: Text = getattr(pair, column)
    contents = [part] if isinstance(part, str) else [message["content"] for message in part]
    for content in contents:
        if not content.strip():
            found = "empty" if not content else f"only blanks ({shown(content, 20)})"
            raise DataError(pair.where, f"found {found}; expected text", column)


def _missing(name: str, found: list[str]) -> str:
    close = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
    hint = f"; did you mean {shown(close[0], 60)} to be {name!r}?" if close else ""
    return f"column {name!r} is missing; found {shown(found)}{hint}"


def _text(row: RawRow, column: str) -> str:
    value = row.columns[column]
    if not isinstance(value, str):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected text", column)
    return value


def _messages(row: RawRow, column: str) -> Messages:
    value = row.columns[column]
    if not isinstance(value, list):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected a list of messages", column)
    if not value:
        raise DataError(row.where, "found an empty list; expected messages", column)
    return tuple(_message(row, f"{column}[{place}]", item) for place, item in enumerate(value))


def _message(row: RawRow, place: str, item: Any) -> Message:
    if not isinstance(item, dict):
        raise DataError(row.where, f"found {kind(item)}; expected a message with role and content", place)
    for key in ("role", "content"):
        if key not in item:
            raise DataError(row.where, f"message without {key!r}; found {shown(list(item), 60)}", place)
        if not isinstance(item[key], str):
            raise DataError(row.where, f"found {kind(item[key])} as {key!r}; expected text", place)
    if item["role"] not in ROLES:
        raise DataError(
            row.where, f"role {shown(item['role'], 40)} is unknown; expected one of {', '.join(ROLES)}", place
        )
    return {key: part for key, part in item.items() if part is not None}


def _asked(prompt: str) -> Messages:
    return ({"role": "user", "content": prompt},)


def _extra(row: RawRow) -> dict[str, Any]:
    return {name: value for name, value in row.columns.items() if name not in _NAMED}


def _differ(first: str, second: str) -> str:
    """The first place where two texts differ, with a little of each."""
    pairs = enumerate(zip(first, second, strict=False))
    place = next((number for number, (a, b) in pairs if a != b), min(len(first), len(second)))
    return f"at character {place + 1}: {shown(first[place : place + 40])} and {shown(second[place : place + 40])}"


def _turn(first: Messages, second: Messages) -> str:
    """The first turn in which two conversations differ."""
    pairs = enumerate(zip(first, second, strict=False), start=1)
    place = next((number for number, (a, b) in pairs if a != b), 0)
    if not place:
        return f"{len(first)} turns and {len(second)} turns"
    return f"turn {place}: {shown(dict(first[place - 1]), 90)} and {shown(dict(second[place - 1]), 90)}"
