"""Mapping a function over a stream in worker processes, in order, and showing the progress of reading."""

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
ParsedRows: TypeAlias = Iterable[ParsedRow | DataError]
ShowProgress: TypeAlias = Callable[[ParsedRows, str], Iterator[ParsedRow | DataError]]
"""Passes rows on, and may show their number."""

SMALL = 20
"""Items that are processed in this process before workers are started, unless their number is set."""
MAX_PROCESSES = 8
_AHEAD = 2
_THREADS = "TOKENIZERS_PARALLELISM"
_PROGRESS_EVERY = 1000
_NOTHING: Any = object()
_function: Callable[[Any], Any]


def ordered_map(
    function: Callable[[Work], Result],
    stream: Iterable[Work],
    processes: int | None = 0,
    describe: Callable[[Work], str] = lambda item: "",
) -> Iterator[Result]:
    """Yield the function's result for each item, in order, for any number of processes.

    Only as many items are read ahead as keep the workers busy. The workers end with this process, however it ends.

    Args:
        function: the function; it is sent to each worker once.
        stream: the items.
        processes: number of worker processes; 0 works in this process; None uses one for each core, at most 8, if
            the stream is not small.
        describe: names an item in error messages.

    Raises:
        ChildProcessError: a worker was killed, for example because memory ran out.

    >>> list(ordered_map(str.upper, ["a", "b"]))
    ['A', 'B']
    """
    items = iter(stream)
    if processes is None:
        processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else 0
        yield from map(function, islice(items, SMALL))
    first = next(items, _NOTHING)
    if first is _NOTHING:
        return
    rest: Iterable[Any] = chain([first], items)
    with _frozen_objects():
        yield from map(function, rest) if processes < 1 else _parallel_map(function, rest, processes, describe)


def _parallel_map(
    function: Callable[[Any], Any], items: Iterable[Any], processes: int, describe: Callable[[Any], str]
) -> Iterator[Any]:
    waiting: deque[tuple[Future[Any], Any]] = deque()
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    with (
        _single_threaded_tokenizers(),
        ProcessPoolExecutor(processes, context, initializer=_initialize, initargs=(function, os.getpid())) as pool,
    ):
        try:
            for item in items:
                waiting.append((pool.submit(_work, item), item))
                if len(waiting) > _AHEAD * processes:
                    yield waiting[0][0].result()
                    waiting.popleft()
            while waiting:
                yield waiting[0][0].result()
                waiting.popleft()
        except BrokenProcessPool as error:
            rows = describe(waiting[0][1]) if waiting else ""
            raise ChildProcessError(
                f"a process that tokenizes{rows and f' {rows}, or later rows,'} was ended from outside, as happens "
                "when memory is short; lower data.tokenize_workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _initialize(function: Callable[[Any], Any], parent: int) -> None:
    """Set up a worker: interrupts are handled by the parent, and the worker ends with it."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(item: Any) -> Any:
    return _function(item)


@contextmanager
def _frozen_objects() -> Iterator[None]:
    """Exclude existing objects from garbage collection, which would cost a third of the time and copies in workers."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    """Keep the tokenizers library from starting threads in the workers, and from warning about it."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = before


def without_progress(rows: ParsedRows, label: str) -> Iterator[ParsedRow | DataError]:
    """Yield the rows without showing progress."""
    yield from rows


def with_progress(rows: ParsedRows, label: str, console: Console | None = None) -> Iterator[ParsedRow | DataError]:
    """Yield the rows and show their number and rate, if the output is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield from rows
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        for number, row in enumerate(rows, start=1):
            if number % _PROGRESS_EVERY == 0:
                rate = number / (progress.tasks[0].elapsed or 1)
                progress.update(task, description=f"{label}: {number} rows, {rate:.0f} rows/s")
            yield row
