"""Runs the cells of a sweep in processes, several at once, and reports how far they are."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from lit_align.errors import printable
from lit_align.interrupts import SIGNAL_NAMES, Stopped
from lit_align.sweep.worker import HEADING, LOG, Task, start_process

_LAST_LINES = 3
"""Lines of a log that are shown when a cell fails."""


class ProcessPool:
    """Runs tasks in processes.

    Args:
        processes: number of tasks at once.
        devices: CUDA devices to give one to each process; empty for none.
        threads: of each process; None for as many as a run alone.
    """

    def __init__(self, processes: int, devices: Sequence[str] = (), threads: int | None = None) -> None:
        self.slots = [devices[number % len(devices)] if devices else None for number in range(processes)]
        self.threads = threads
        self.running: dict[BaseProcess, tuple[Task, str | None]] = {}
        self.received = 0

    def run(self, tasks: Sequence[Task], ended: Callable[[Task, int], Task | None]) -> None:
        """Run tasks until none is left.

        Args:
            tasks: to run.
            ended: called with a task and the exit code of its process; returns a task to run next, or None.

        Raises:
            Stopped: after SIGTERM or Ctrl-C, when all processes have ended.
        """
        waiting, free = deque(tasks), deque(self.slots)
        with self._signals():
            while self.running or (waiting and not self.received):
                while waiting and free and not self.received:
                    device = free.popleft()
                    task = waiting.popleft()
                    process = start_process(task, self.threads, device)
                    self.running[process] = (task, device)
                    if self.received:  # while the process was started
                        self._hand_on(self.received, [process])
                for process in self._wait():
                    task, device = self.running.pop(process)
                    free.append(device)
                    process.join()
                    code = process.exitcode or 0
                    again = ended(task, 128 - code if code < 0 else code) if not self.received else None
                    if again is not None:
                        waiting.append(again)
        if self.received:
            raise Stopped(self.received)

    def _wait(self) -> list[BaseProcess]:
        ready = wait([process.sentinel for process in self.running], timeout=0.5)
        return [process for process in self.running if process.sentinel in ready]

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Hand signals on to the processes, which save a checkpoint and end."""
        before = {number: signal.signal(number, self._receive) for number in SIGNAL_NAMES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            name = SIGNAL_NAMES[signal.Signals(number)]
            print(f"{name}: cells stop after their step; the same command goes on from there", file=sys.stderr)
        self.received = number
        self._hand_on(number, list(self.running))

    def _hand_on(self, number: int, processes: Sequence[BaseProcess]) -> None:
        for process in processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)


class SweepRun:
    """Runs cells, tries those that fail again, and prints a line for each.

    Args:
        pool: of processes.
        total: number of cells of the sweep.
        done: number of those that had finished before.
        retries: how often a cell that fails is tried again.
        can_resume: says whether a cell has a checkpoint to go on from.
    """

    def __init__(
        self, pool: ProcessPool, total: int, done: int, retries: int, can_resume: Callable[[Task], bool]
    ) -> None:
        self.pool, self.total, self.done, self.retries, self.can_resume = pool, total, done, retries, can_resume
        self.failed: dict[str, Path] = {}
        self._tries: dict[str, int] = {}
        self._resumed: set[str] = set()
        self._began = time.monotonic()
        self._before = done

    def run(self, tasks: Sequence[Task]) -> dict[str, Path]:
        """Run the cells, and return the logs of those that failed to the last."""
        self._resumed = {task.name for task in tasks if self.can_resume(task)}
        self.pool.run(tasks, self._ended)
        return self.failed

    def _ended(self, task: Task, code: int) -> Task | None:
        log = task.folder / LOG
        if code == 0:
            self.done += 1
            self._print(f"finished {task.name}{self._time_left()}")
            return None
        self._tries[task.name] = tries = self._tries.get(task.name, 0) + 1
        again = tries <= self.retries
        print(f"{task.name} ended with code {code}{'; trying again' if again else ''}: {log}", file=sys.stderr)
        print(*(f"    {line}" for line in last_lines(log)), sep="\n", file=sys.stderr, flush=True)
        if not again:
            self.failed[task.name] = log
            self._print(f"failed {task.name}")
            return None
        anew = task.name in self._resumed and not task.anew  # the checkpoint itself may be what is wrong
        self._resumed |= {task.name} if self.can_resume(task) else set()
        return replace(task, anew=anew)

    def _print(self, text: str) -> None:
        print(f"[{self.done + len(self.failed)}/{self.total}] {printable(text)}", flush=True)

    def _time_left(self) -> str:
        """Return how long the other cells will take if they take as long as those so far."""
        ended = self.done + len(self.failed) - self._before
        left = (time.monotonic() - self._began) / ended * (self.total - self._before - ended)
        return f"; about {duration(left)} left" if left else ""


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are two or more.

    >>> duration(90), duration(7300), duration(9)
    ('90 s', '2 h', '9 s')
    """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log that say something, safe to print."""
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    return [printable(line) for line in lines if line.strip() and not line.startswith(HEADING)][-_LAST_LINES:]


def prepare_caches(pool: ProcessPool, tasks: Sequence[Task]) -> None:
    """Fill the caches that cells share, before they start.

    Raises:
        ValueError: it failed for every group; has the last lines of the log.
    """
    first = list({task.group: task for task in reversed(tasks)}.values())[::-1]
    failed: list[Task] = []

    def ended(task: Task, code: int) -> None:
        if code:
            failed.append(task)
        shutil.rmtree(task.folder / "run", ignore_errors=True)

    began = time.monotonic()
    pool.run([_preparation(task, number) for number, task in enumerate(first)], ended)
    if first and len(failed) == len(first):
        log = failed[0].folder / LOG
        raise ValueError("\n".join([f"the data of the cells cannot be prepared ({log}):", *last_lines(log)]))
    if first:
        print(f"data and reference are prepared ({duration(time.monotonic() - began)})", flush=True)


def _preparation(task: Task, number: int) -> Task:
    folder = task.folder.parent / "cache" / f"prepare-{number}"
    return Task(f"caches of {task.name}", folder, [*task.arguments, "--run", str(folder / "run")])
