"""Signals that end a run, and the code of others that they may interrupt: data sources and score functions."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNAL_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
"""The signals that end a run, as users know them."""


class Stopped(SystemExit):
    """Ends the process after a signal, with the exit code that shells give: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        number: of the signal.
        in_order: whether a checkpoint has been saved for it.
    """

    def __init__(self, number: int, in_order: bool = False) -> None:
        super().__init__(128 + number)
        self.number = signal.Signals(number)
        self.in_order = in_order

    @property
    def name(self) -> str:
        """Name of the signal."""
        return SIGNAL_NAMES.get(self.number, self.number.name)


GRACE = 10
"""Seconds that a process that has received a signal goes on waiting for a data source or a score function."""


class Waiting:
    """What this process waits for, and the signal that it has received while it must not be interrupted."""

    def __init__(self) -> None:
        self.on: str = ""
        self.received: int = 0
        self.may_stop = False
        """Whether a signal ends the process at once while it waits."""

    @contextmanager
    def for_code_of_others(self, name: str) -> Iterator[None]:
        """Mark a call that a signal may interrupt, as nothing of the run's state changes in it.

        Args:
            name: of what is called.
        """
        before, self.on = self.on, name
        self.limit()
        try:
            yield
        finally:
            self.on = before
            if self.received:
                signal.alarm(0)

    def limit(self) -> None:
        """Let the wait end after ``GRACE`` seconds if a signal has been received."""
        if self.received and self.on:
            signal.alarm(GRACE)


waiting = Waiting()


def stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """End the process; the handler of both signals while there is nothing to save.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


def handle_signals(handler: Callable[[int, FrameType | None], None] = stop_at_once) -> None:
    """Set the handler of the signals that end a run; does nothing in other threads than the main one."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNAL_NAMES:
            signal.signal(number, handler)
