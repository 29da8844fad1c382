"""A data error says which row cannot be used, and why."""

from __future__ import annotations

import math
import re

_SHOWN = 200
_ACCESS_TOKEN = re.compile(r"hf_\w{16,}")
_SECRET = re.compile(
    r"""(\b\w*(?:(?<![be]os_)(?<!pad_)(?<!unk_)token|secret|password|api_?key)['"]?\s*[:=]\s*)(['"])(?:\\.|(?!\2).)+\2""",
    re.IGNORECASE,
)
_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class DataError(ValueError):
    """A row, or a whole file, that cannot be used.

    Args:
        where: ``file:line``, counted from 1; the name alone where the whole file is meant.
        reason: what was found and what was expected.
        column: the column it is about, if it is about one.

    >>> print(DataError("pairs.jsonl:3", "found null; expected text", column="chosen"))
    pairs.jsonl:3: chosen: found null; expected text
    """

    def __init__(self, where: str, reason: str, column: str | None = None) -> None:
        super().__init__(": ".join(part for part in (where, column, reason) if part))
        self.where = where
        self.reason = reason
        self.column = column

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str | None]]:
        return DataError, (self.where, self.reason, self.column)


def shown(value: object, limit: int = _SHOWN) -> str:
    r"""A value as it may stand in a message: by ``repr``, so that it cannot steer a terminal, and not too long.

    Args:
        value: what was found.
        limit: characters that are shown.

    >>> shown("\x1b[2Jgone")
    "'\\x1b[2Jgone'"
    >>> shown("a" * 500, limit=5)
    "'aaaa… (502 characters)"
    """
    text = without_secrets(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def without_secrets(text: str) -> str:
    """A text without access tokens and without what stands behind the name of a secret.

    >>> without_secrets("{'prompt': 'x', 'api_token': 'abc'}")
    "{'prompt': 'x', 'api_token': '…'}"
    >>> without_secrets("{'eos_token': '</s>'}")
    "{'eos_token': '</s>'}"
    """
    return _SECRET.sub(r"\1\2…\2", _ACCESS_TOKEN.sub("hf_…", text))


def printable(message: str) -> str:
    r"""A whole message as it may be printed: without secrets, and without what steers a terminal.

    >>> print(printable("a file named \x1b[2J.jsonl"))
    a file named \x1b[2J.jsonl
    """
    return _STEERS.sub(lambda found: repr(found[0])[1:-1], without_secrets(message))


def kind(value: object) -> str:
    """What a value is, in a reader's words.

    >>> kind(None), kind([1]), kind("x")
    ('null', 'a list', 'text')
    """
    words = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else words.get(type(value), type(value).__name__)


def check_range(key: str, found: float | None, low: float, high: float = math.inf) -> None:
    """Raise unless a number is finite and within its range; None is always fine.

    Args:
        key: the setting, as a user writes it.
        found: its value.
        low: the least that is accepted.
        high: the most that is accepted.

    >>> check_range("data.batch_size", 0, 1)
    Traceback (most recent call last):
    ValueError: data.batch_size is 0; expected 1 or more
    """
    if found is not None and not (math.isfinite(found) and low <= found <= high):
        expected = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
        raise ValueError(f"{key} is {found}; expected {expected}")
