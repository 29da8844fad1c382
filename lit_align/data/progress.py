"""Progress is shown of what takes longer than a moment, and only to a person at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lit_align.data.errors import DataError
from lit_align.data.format import Reading

Readings: TypeAlias = Iterable[Reading | DataError]
Watch: TypeAlias = Callable[[Readings, str], Iterator[Reading | DataError]]
"""Hands readings on, and may show how many."""

_EVERY = 1000


def unwatched(readings: Readings, words: str) -> Iterator[Reading | DataError]:
    """The readings, and nothing is shown."""
    yield from readings


def watched(readings: Readings, words: str, console: Console | None = None) -> Iterator[Reading | DataError]:
    """The readings, while their number and rate are shown; nothing is where the output is no terminal.

    Args:
        readings: what is waited for.
        words: what is being done.
        console: where it is shown; None for the error stream.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from readings
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(words, total=None)
        for number, reading in enumerate(readings, start=1):
            if number % _EVERY == 0:
                rate = number / (progress.tasks[0].elapsed or 1)
                progress.update(task, description=f"{words}: {number} rows, {rate:.0f} rows/s")
            yield reading
