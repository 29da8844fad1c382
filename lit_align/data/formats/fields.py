"""A cell is what one column of a row holds; reading it checks that it is what it should be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, kind, shown
from lit_align.types import Message, Text

Messages: TypeAlias = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_COLUMNS = ("prompt", "chosen", "rejected", "responses", "completion", "tools")
SCORE_COLUMNS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def text(row: RawRow, column: str) -> str:
    """The text in a column."""
    value = row.columns[column]
    if not isinstance(value, str):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected text", column)
    return value


def messages(row: RawRow, column: str) -> Messages:
    """The messages in a column, checked one by one."""
    return conversation(row, column, row.columns[column])


def conversation(row: RawRow, place: str, value: Any) -> Messages:
    """The messages of a list.

    Args:
        row: where the list stands.
        place: its column, or its place in one.
        value: what was found there.

    Raises:
        DataError: it is no list of messages, or empty.
    """
    if not isinstance(value, list):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected a list of messages", place)
    if not value:
        raise DataError(row.where, "found an empty list; expected messages", place)
    return tuple(_message(row, f"{place}[{number}]", item) for number, item in enumerate(value))


def asked(row: RawRow) -> Messages:
    """The messages in ``prompt``; text there is a user's message, nothing there is none."""
    given = row.columns.get("prompt")
    if given is None:
        return ()
    return ({"role": "user", "content": given},) if isinstance(given, str) else messages(row, "prompt")


def _message(row: RawRow, place: str, item: Any) -> Message:
    if not isinstance(item, dict):
        raise DataError(row.where, f"found {kind(item)}; expected a message with role and content", place)
    if item.get("tool_calls") and item.get("content") is None:
        item = {**item, "content": ""}
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


def check_filled(where: str, column: str, part: Text | None) -> None:
    """Raise if a text, or any message, has nothing to read; a message that only calls tools has no text."""
    if part is None:
        return
    for content in [part] if isinstance(part, str) else _said(part):
        if not content.strip():
            found = "empty" if not content else f"only blanks ({shown(content, 20)})"
            raise DataError(where, f"found {found}; expected text", column)


def _said(part: Messages) -> list[str]:
    return [message["content"] for message in part if not message.get("tool_calls")]


def tools(row: RawRow) -> tuple[Mapping[str, Any], ...]:
    """The tools a conversation may use, as JSON schemas; none where the row names none.

    Raises:
        DataError: ``tools`` is no list of objects.
    """
    value = row.columns.get("tools")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(row.where, f"found {shown(value, 40)}; expected a list of JSON schemas", "tools")
    return tuple(value)


def number(where: str, column: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number within a range; text that spells one counts, because tables without types hold only text.

    Args:
        where: the row.
        column: its column, or its place in one.
        value: what was found there.
        low: the least that is accepted.
        high: the most that is accepted.

    Raises:
        DataError: it is something else.

    >>> number("sums.csv:2", "weight", "0.5")
    0.5
    """
    found = _spelled(value)
    if found is None or not (math.isfinite(found) and low <= found <= high):
        span = "" if math.isinf(low) else f" of {low:g} or more" if math.isinf(high) else f" from {low:g} to {high:g}"
        raise DataError(where, f"found {shown(value, 40)}; expected a finite number{span}", column)
    return found


def _spelled(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def truth(row: RawRow, column: str) -> bool:
    """A yes or no: true or false, 1 or 0, also spelled."""
    found = _TRUTH.get(str(row.columns[column]).strip().lower())
    if found is None:
        raise DataError(row.where, f"found {shown(row.columns[column], 40)}; expected true or false", column)
    return found


def optional_number(row: RawRow, column: str, low: float, high: float = math.inf) -> float | None:
    """A number, or None where the row has none."""
    value = row.columns.get(column)
    return None if value is None or value == "" else number(row.where, column, value, low, high)


def weight(row: RawRow) -> float:
    """How much the row counts; 1 in a row without such a column."""
    if "weight" not in row.columns:
        return 1.0
    found = number(row.where, "weight", row.columns["weight"], 0)
    if not found:
        raise DataError(row.where, "found 0; expected more than 0: leave the row out instead", "weight")
    return found


def scores(row: RawRow) -> tuple[float, float] | None:
    """What the two sides were scored with, NaN for a side without a score; None where neither has one."""
    for columns in SCORE_COLUMNS:
        first, second = (_spelled(row.columns.get(column)) for column in columns)
        if first is not None or second is not None:
            return (math.nan if first is None else first), (math.nan if second is None else second)
    return None


def extra(row: RawRow) -> dict[str, Any]:
    """The columns that are not the pair's own text."""
    return {name: value for name, value in row.columns.items() if name not in TEXT_COLUMNS}
