"""Checked access to the fields of a row: text, messages, numbers, and truth values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from lit_align.data.formats.base import RawRow
from lit_align.errors import DataError, kind, shown
from lit_align.types import Message, Text

Messages: TypeAlias = tuple[Message, ...]

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_COLUMNS = ("prompt", "chosen", "rejected", "responses", "completion", "tools")
SCORE_COLUMNS = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def text(row: RawRow, column: str) -> str:
    """Return the text in a column."""
    value = row.columns[column]
    if not isinstance(value, str):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected text", column)
    return value


def messages(row: RawRow, column: str) -> Messages:
    """Return the messages in a column."""
    return parse_messages(row, column, row.columns[column])


def parse_messages(row: RawRow, column: str, value: Any) -> Messages:
    """Check a list of messages one by one.

    Args:
        row: the row of the list.
        column: the column of the list, or its place in one, such as ``responses[1]``.
        value: the list.

    Raises:
        DataError: the value is not a list of messages, or is empty.
    """
    if not isinstance(value, list):
        raise DataError(row.where, f"found {kind(value)} ({shown(value, 40)}); expected a list of messages", column)
    if not value:
        raise DataError(row.where, "found an empty list; expected messages", column)
    return tuple(_message(row, f"{column}[{index}]", item) for index, item in enumerate(value))


def prompt_messages(row: RawRow) -> Messages:
    """Return the messages in ``prompt``: text counts as one user message, a missing prompt as none."""
    prompt = row.columns.get("prompt")
    if prompt is None:
        return ()
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else messages(row, "prompt")


def _message(row: RawRow, column: str, item: Any) -> Message:
    """Check a message, and write its content as text and the arguments of its calls as objects.

    Null keys are left out, except for the content of a message that only calls tools.
    """
    if not isinstance(item, dict):
        raise DataError(row.where, f"found {kind(item)}; expected a message with role and content", column)
    message = {key: value for key, value in _without_filled(row, item).items() if value is not None}
    calls = message.get("tool_calls")
    for key in ("role",) if calls else ("role", "content"):
        if key not in item:
            raise DataError(row.where, f"message without {key!r}; found {shown(list(item), 60)}", column)
    if not isinstance(item["role"], str):
        raise DataError(row.where, f"found {kind(item['role'])} as 'role'; expected text", column)
    if item["role"] not in ROLES:
        raise DataError(
            row.where, f"role {shown(item['role'], 40)} is unknown; expected one of {', '.join(ROLES)}", column
        )
    only_calls = calls and "content" not in message
    message["content"] = None if only_calls else _content(row, column, item["content"])
    return {**message, "tool_calls": _with_objects(calls)} if calls else message


def _content(row: RawRow, column: str, value: Any) -> str:
    """Return the content of a message as text; the texts of a list of parts are joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise DataError(row.where, f"found {kind(value)} as 'content'; expected text", column)
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in value]
    for part in parts:
        if not (isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)):
            raise DataError(row.where, f"found {shown(part, 60)} in 'content'; expected parts of text alone", column)
    return "".join(part["text"] for part in parts)


def _with_objects(calls: Any) -> Any:
    """Return tool calls whose arguments are objects where they were objects written as JSON text."""
    if isinstance(calls, list):
        return [_with_objects(call) for call in calls]
    if not isinstance(calls, dict):
        return calls
    arguments = {key: _parsed_object(value) for key, value in calls.items() if key in ("arguments", "parameters")}
    return {**calls, **arguments, **{key: _with_objects(calls[key]) for key in ("function",) if key in calls}}


def _parsed_object(value: Any) -> Any:
    parsed = _parsed(value)
    return parsed if isinstance(parsed, dict) else value


def _parsed(value: Any) -> Any:
    """Parse JSON text; return any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_filled(row: RawRow, value: Any) -> Any:
    """Remove keys with null at any depth, if the source fills missing keys with null."""
    if not row.null_filled:
        return value
    if isinstance(value, Mapping):
        return {key: _without_filled(row, item) for key, item in value.items() if item is not None}
    return [_without_filled(row, item) for item in value] if isinstance(value, list | tuple) else value


def check_not_blank(where: str, column: str, value: Text | None) -> None:
    """Raise a ``DataError`` for blank text. A message that only calls tools may have no text."""
    if value is None:
        return
    turns = (message["content"] for message in value if not isinstance(message, str) and not message.get("tool_calls"))
    for content in [value] if isinstance(value, str) else turns:
        if not content.strip():
            problem = "empty" if not content else f"only blanks ({shown(content, 20)})"
            raise DataError(where, f"found {problem}; expected text", column)


def tools(row: RawRow) -> tuple[Mapping[str, Any], ...]:
    """Return the JSON schemas of the tools that a conversation may use; the list or its items may be JSON text.

    Raises:
        DataError: ``tools`` is not a list of objects.
    """
    value = _parsed(_without_filled(row, row.columns.get("tools")))
    if value is None or value == "":
        return ()
    value = [_parsed(item) for item in value] if isinstance(value, list) else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise DataError(row.where, f"found {shown(value, 40)}; expected a list of JSON schemas", "tools")
    return tuple(value)


def number(where: str, column: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Parse a finite number in a range. Numeric strings are accepted, because CSV files hold only text.

    Args:
        where: ``file:line`` of the row.
        column: the column, or a place in one, such as ``scores[1]``.
        value: the value to parse.
        low: smallest accepted value.
        high: largest accepted value.

    Raises:
        DataError: the value is not such a number.

    >>> number("sums.csv:2", "weight", "0.5")
    0.5
    """
    parsed = _as_float(value)
    if parsed is None or not (math.isfinite(parsed) and low <= parsed <= high):
        span = "" if math.isinf(low) else f" of {low:g} or more" if math.isinf(high) else f" from {low:g} to {high:g}"
        raise DataError(where, f"found {shown(value, 40)}; expected a finite number{span}", column)
    return parsed


def _as_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def boolean(row: RawRow, column: str) -> bool:
    """Parse ``true``, ``false``, ``1`` or ``0``, as a value, as a number with a decimal point, or as text."""
    parsed = _BOOLEANS.get(str(row.columns[column]).strip().lower())
    if parsed is None:
        raise DataError(row.where, f"found {shown(row.columns[column], 40)}; expected true or false", column)
    return parsed


def optional_number(row: RawRow, column: str, low: float, high: float = math.inf) -> float | None:
    """Parse a number; None if the row has none."""
    value = row.columns.get(column)
    return None if value is None or value == "" else number(row.where, column, value, low, high)


def weight(row: RawRow) -> float:
    """Parse the weight of a row; 1 without a ``weight`` column."""
    if "weight" not in row.columns:
        return 1.0
    parsed = number(row.where, "weight", row.columns["weight"], 0)
    if not parsed:
        raise DataError(row.where, "found 0; expected more than 0: leave the row out instead", "weight")
    return parsed


def scores(row: RawRow) -> tuple[float, float] | None:
    """Return the scores of chosen and rejected, NaN for a side without a score; None if neither has one."""
    for columns in SCORE_COLUMNS:
        chosen, rejected = (_as_float(row.columns.get(column)) for column in columns)
        if chosen is not None or rejected is not None:
            return (math.nan if chosen is None else chosen), (math.nan if rejected is None else rejected)
    return None


def extra(row: RawRow) -> dict[str, Any]:
    """Return the columns that do not hold the text of the pair."""
    return {name: value for name, value in row.columns.items() if name not in TEXT_COLUMNS}
