"""An orderly end when the machine asks for it."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_align.callbacks.checkpointing.checkpoints import INTERRUPTED, checkpoint_folder, validation_follows


class GracefulStop(Callback):
    """On SIGTERM, finishes the optimizer step, saves a checkpoint, and ends the run with exit code 143.

    The handler only sets a flag; the ranks agree on it between steps, where a collective is safe. (A collective
    inside the signal handler, as Lightning has it, can hang a rank that is in its backward pass.)
    """

    def __init__(self) -> None:
        self._asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which registers its handler earlier."""
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if any rank was asked to, unless a validation follows, which belongs to the step."""
        if not trainer.fit_loop._should_accumulate() and not validation_follows(trainer):
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here if any rank was asked to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fit_loop._should_accumulate():
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            path = checkpoint_folder(trainer.default_root_dir) / INTERRUPTED
            trainer.save_checkpoint(path)
            trainer.strategy.barrier()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            rank_zero_info(f"stopped by SIGTERM after step {trainer.global_step}; go on with --ckpt_path {path}")
            raise SIGTERMException
