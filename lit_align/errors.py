"""The error for unusable rows, and helpers for safe and uniform error messages."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

_SHOWN = 200
_ACCESS_TOKEN = re.compile(r"hf_\w{16,}")
_SECRET = re.compile(
    r"""(\b\w*(?:(?<![be]os_)(?<!pad_)(?<!unk_)token|secret|password|api_?key)['"]?\s*[:=]\s*)(['"])(?:\\.|(?!\2).)+\2""",
    re.IGNORECASE,
)
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class DataError(ValueError):
    """Raised for a row, or a whole file, that cannot be used.

    Args:
        where: ``file:line``, with lines counted from 1; only the name if the whole file is meant.
        reason: what was found and what was expected.
        column: the column in question, if any.

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


def data_not_found(source: str) -> str:
    """Return the message on a source of data that does not exist."""
    return f"data file not found: {source} (expected a file, or a hub name owner/name)"


def shown(value: object, limit: int = _SHOWN) -> str:
    r"""Format a value for a message: by ``repr``, so that it cannot control a terminal, without secrets, shortened.

    Args:
        value: the value.
        limit: maximum number of characters.

    >>> shown("\x1b[2Jgone")
    "'\\x1b[2Jgone'"
    >>> shown("a" * 500, limit=5)
    "'aaaa… (502 characters)"
    """
    text = without_secrets(repr(value))
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"


def without_secrets(text: str) -> str:
    """Mask access tokens, and values that follow the name of a secret.

    >>> without_secrets("{'prompt': 'x', 'api_token': 'abc'}")
    "{'prompt': 'x', 'api_token': '…'}"
    >>> without_secrets("{'eos_token': '</s>'}")
    "{'eos_token': '</s>'}"
    """
    return _SECRET.sub(r"\1\2…\2", _ACCESS_TOKEN.sub("hf_…", text))


def printable(message: str) -> str:
    r"""Make a message safe to print: mask secrets, and escape characters that control a terminal.

    >>> print(printable("a file named \x1b[2J.jsonl"))
    a file named \x1b[2J.jsonl
    """
    return _CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], without_secrets(message))


def kind(value: object) -> str:
    """Describe the type of a value in plain words.

    >>> kind(None), kind([1]), kind("x")
    ('null', 'a list', 'text')
    """
    words = {str: "text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else words.get(type(value), type(value).__name__)


def check_range(key: str, value: float | None, low: float, high: float = math.inf) -> None:
    """Raise unless a number is finite and within its range; None is always accepted.

    Args:
        key: the setting, as a user writes it.
        value: its value.
        low: smallest accepted value.
        high: largest accepted value.

    Raises:
        ValueError: the number is out of range.

    >>> check_range("data.batch_size", 0, 1)
    Traceback (most recent call last):
    ValueError: data.batch_size is 0; expected 1 or more
    """
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        expected = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
        raise ValueError(f"{key} is {value}; expected {expected}")


def check_bitsandbytes(key: str, quantization: str) -> None:
    """Raise if weights are to be quantized and bitsandbytes is missing.

    Args:
        key: of the setting, for the message.
        quantization: its value.

    Raises:
        ValueError: with the command that installs it.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"{key} is {quantization}, which needs bitsandbytes: pip install 'lit-align[quantization]'")


def check_trainable(key: str, quantization: str | None, adapter: object) -> None:
    """Raise if weights that would be trained are to be quantized.

    Args:
        key: of the model's ``loading``, for the message.
        quantization: of its weights.
        adapter: that is trained in their place; None for none.

    Raises:
        ValueError: there is no adapter.
    """
    if quantization is not None and adapter is None:
        raise ValueError(
            f"{key}.quantization is {quantization}, and quantized weights cannot be trained: train an adapter on them "
            "(model.lora, of policies and reward models), or leave it out"
        )
