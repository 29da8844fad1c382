"""Reports and ends processes that hang."""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_align.compat.lightning import child_processes, process_timeout

SHARE_OF_TIMEOUT = 0.8
"""After this share of the strategy's timeout a process reports, before others give up waiting for it."""
GRACE_SECONDS = 10.0
"""How long other processes may take to end by themselves after a failure."""


class Watchdog(Callback):
    """Prints the stack of each of several processes that has been in one batch for most of the timeout.

    A process that waits for another gives up at the timeout and cannot say for which; the stacks show which one hangs,
    and where. A thread looks at the clock once a second; a batch costs one assignment. When the run fails in the
    process that started the others, those that hang are ended with it.
    """

    def __init__(self) -> None:
        self._last_progress = 0.0
        self._stopped: threading.Event | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()
        if trainer.world_size > 1:
            self._last_progress = time.monotonic()
            self._stopped = threading.Event()
            patience = process_timeout(trainer).total_seconds() * SHARE_OF_TIMEOUT
            work = (trainer.global_rank, patience, threading.get_ident(), self._stopped)
            threading.Thread(target=self._watch, args=work, daemon=True).start()

    def _watch(self, rank: int, patience: float, thread: int, stopped: threading.Event) -> None:
        reported = 0.0
        while not stopped.wait(min(1.0, patience)):
            last = self._last_progress
            if time.monotonic() - last >= patience and last != reported:
                reported = last
                stack = "".join(traceback.format_stack(sys._current_frames().get(thread)))
                text = f"rank {rank} has been in one batch for {patience:g} s; it stands here:\n{stack}"
                print(text, end="", file=sys.stderr, flush=True)

    def _progress(self, *_: Any, **__: Any) -> None:
        self._last_progress = time.monotonic()

    on_train_batch_start = on_train_batch_end = _progress
    on_validation_batch_start = on_validation_batch_end = _progress
    on_test_batch_start = on_test_batch_end = _progress
    on_predict_batch_start = on_predict_batch_end = _progress
    on_fit_start = on_train_start = on_train_end = on_fit_end = _progress

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Make sure that no process that this one started outlives it."""
        self._stop()
        if processes := child_processes(trainer):
            atexit.register(end_processes, processes)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
            self._stopped = None


def end_processes(processes: Sequence[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> None:
    """Wait for processes that are about to end, some seconds for all together, and kill those that do not."""
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # a process that hangs ignores milder signals
            process.kill()
            process.wait()
