"""Good rows, to be spoilt by tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lit_align.errors import DataError

T = TypeVar("T")


def pair_row(number: int, length: int = 3) -> dict[str, str]:
    """A good row, different for each number."""
    said = " ".join(["ship"] * length)
    return {"prompt": f"Question {number}:", "chosen": f" {said} {number}", "rejected": f" no {number}"}


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation of user and assistant in turn, the user first."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


def outcome(work: Callable[[], T]) -> T | DataError:
    """What comes of it: its result, or the data error that says why there is none."""
    try:
        return work()
    except DataError as error:
        return error
