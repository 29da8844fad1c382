"""Callbacks around the training loop: a seed per batch, the progress bar, an orderly end on SIGTERM."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import INTERRUPTED, checkpoint_folder
from lit_align.compat.lightning import is_accumulating, validation_follows

SHOWN_METRICS = {
    "loss": "train/loss",
    "accuracy": "train/rewards/accuracies",
    "tokens/s": "train/throughput/tokens_per_second",
}


class StepSeed(Callback):
    """Seeds torch anew for each batch from (seed, batch, rank).

    Saving generator states would not be enough for an exact resume: validation and the workers of every loader draw
    from the global generator. A seed that is a function of the position needs no saving.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        position = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(((self.seed * 1_000_003 + position) * 4099 + trainer.global_rank) % 2**63)


class ProgressBar(RichProgressBar):
    """Rich's progress bar with the last reported loss, reward accuracy and tokens per second."""

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs  # Lightning would count to -2 if the last epoch is not known
        return f"Epoch {current_epoch}" if last is None or last < 0 else f"Epoch {current_epoch}/{last - 1}"

    @override
    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        known = trainer.callback_metrics
        values = {label: float(known[name]) for label, name in SHOWN_METRICS.items() if name in known}
        return {label: f"{value:.0f}" if value >= 100 else f"{value:.3f}" for label, value in values.items()}


class GracefulStop(Callback):
    """Finishes the optimizer step on SIGTERM, saves a checkpoint, and ends the run with exit code 143.

    The handler only sets a flag; the ranks agree on it between steps, where a collective is safe. (A collective
    inside the signal handler, as Lightning has it, can hang a rank that is in its backward pass.)
    """

    def __init__(self) -> None:
        self._received = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGTERM, self._receive)  # Lightning has registered its own handler before

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after an optimizer step, unless a validation follows, which belongs to the step."""
        if not is_accumulating(trainer) and not validation_follows(trainer):
            self._stop_if_received(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not is_accumulating(trainer):
            self._stop_if_received(trainer)

    def _stop_if_received(self, trainer: Trainer) -> None:
        """Save and stop if any rank has received the signal."""
        if trainer.strategy.reduce_boolean_decision(self._received, all=False):
            path = checkpoint_folder(trainer.default_root_dir) / INTERRUPTED
            trainer.save_checkpoint(path)
            trainer.strategy.barrier()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            rank_zero_info(f"stopped by SIGTERM after step {trainer.global_step}; go on with --ckpt_path {path}")
            raise SIGTERMException
