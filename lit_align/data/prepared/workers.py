"""Workers are processes that share out a stream of work; its results come back in the order of the stream."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeAlias, TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lit_align.data.formats.base import ParsedRow
from lit_align.errors import DataError

Work = TypeVar("Work")
Result = TypeVar("Result")

SMALL = 20
"""So many pieces of work are done in this process before others are started, where nobody says how many."""
MOST = 8
_AHEAD = 2
_THREADS = "TOKENIZERS_PARALLELISM"


def ordered_map(
    function: Callable[[Work], Result], stream: Iterable[Work], processes: int | None = 0
) -> Iterator[Result]:
    """The function's result for each piece of work, in their order, whatever the number of processes.

    Only so many pieces are read ahead as keep the processes busy. They end with this one, however it ends.

    Args:
        function: what is to be done; it is handed over once.
        stream: the pieces of work.
        processes: 0 works in this process; None takes one for each core, at most 8, for a stream that is not small.

    Raises:
        ChildProcessError: a process was ended from outside, as for want of memory.

    >>> list(ordered_map(str.upper, ["a", "b"]))
    ['A', 'B']
    """
    pieces = iter(stream)
    if processes is None:
        processes = min(MOST, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 0
        yield from map(function, islice(pieces, SMALL))
    first = next(pieces, _NOTHING)
    if first is _NOTHING:
        return
    rest: Iterable[Any] = chain([first], pieces)
    with _old_objects_left_alone():
        yield from map(function, rest) if processes < 1 else _shared_out(function, rest, processes)


_NOTHING: Any = object()


def _shared_out(function: Callable[[Any], Result], pieces: Iterable[Any], processes: int) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    with _one_thread_each(), _pool(function, processes) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(_work, piece))
                if len(waiting) > _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that tokenizes was ended from outside, as happens when memory is short; "
                "lower data.tokenize_workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pool(function: Callable[[Any], Any], processes: int) -> ProcessPoolExecutor:
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else None)
    return ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(function, os.getpid()))


_function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    """Set up a process: interrupts are the parent's business, and nothing outlives it."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(piece: Any) -> Any:
    return _function(piece)


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """No garbage is looked for among what was there before: it takes a third of the time, and a copy per process."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """The tokenizers library starts no threads of its own in the processes, and says nothing about it."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


Readings: TypeAlias = Iterable[ParsedRow | DataError]
Watch: TypeAlias = Callable[[Readings, str], Iterator[ParsedRow | DataError]]
"""Hands readings on, and may show how many."""

_EVERY = 1000


def unwatched(readings: Readings, words: str) -> Iterator[ParsedRow | DataError]:
    """The readings, and nothing is shown."""
    yield from readings


def watched(readings: Readings, words: str, console: Console | None = None) -> Iterator[ParsedRow | DataError]:
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
