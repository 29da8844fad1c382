"""A watch shows where a process stands that the others will soon not wait for any more."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.constants import default_pg_timeout

SHARE = 0.8
"""Of the strategy's timeout: all have spoken before the first one gives up."""
GRACE = 10.0
"""Seconds that the other processes have for ending by themselves behind a failure."""


class Watchdog(Callback):
    """Of several processes, prints where each one stands that has been in one batch for most of the timeout.

    The process that waits gives up soon after and names no culprit; the stacks say which one hangs, and where. A
    thread looks at the clock once a second; a batch costs it one assignment. When the run fails in the process that
    started the others, those that hang end with it.
    """

    def __init__(self) -> None:
        self._moved = 0.0
        self._over: threading.Event | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin to look, if there is anyone who waits."""
        self._stop()
        if trainer.world_size > 1:
            self._moved = time.monotonic()
            self._over = threading.Event()
            work = (trainer.global_rank, _patience(trainer), threading.get_ident(), self._over)
            threading.Thread(target=self._look, args=work, daemon=True).start()

    def _look(self, rank: int, patience: float, thread: int, over: threading.Event) -> None:
        told = 0.0
        while not over.wait(min(1.0, patience)):
            moved = self._moved
            if time.monotonic() - moved >= patience and moved != told:
                told = moved
                stack = "".join(traceback.format_stack(sys._current_frames().get(thread)))
                text = f"rank {rank} has been in one batch for {patience:g} s; it stands here:\n{stack}"
                print(text, end="", file=sys.stderr, flush=True)

    def _move(self, *given: Any, **more: Any) -> None:
        self._moved = time.monotonic()

    on_train_batch_start = on_train_batch_end = _move
    on_validation_batch_start = on_validation_batch_end = _move
    on_test_batch_start = on_test_batch_end = _move
    on_predict_batch_start = on_predict_batch_end = _move
    on_fit_start = on_train_start = on_train_end = on_fit_end = _move

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """See to it that no process that this one started outlives it."""
        self._stop()
        started: Sequence[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", ())
        if started:
            atexit.register(end, started)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look no longer."""
        self._stop()

    def _stop(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None


def end(processes: Sequence[subprocess.Popen[bytes]], grace: float = GRACE) -> None:
    """Wait for processes that are about to end, and end those that are not.

    Args:
        processes: to wait for.
        grace: seconds that they have together.
    """
    until = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:  # one that hangs does not hear anything milder
            process.kill()
            process.wait()


def _patience(trainer: Trainer) -> float:
    given: timedelta | None = getattr(trainer.strategy, "_timeout", None)
    return (given or default_pg_timeout).total_seconds() * SHARE
