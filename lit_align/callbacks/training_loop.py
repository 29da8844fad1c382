"""Callbacks around the training loop: a seed per batch, the progress bar, an orderly end on SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import INTERRUPTED, checkpoint_folder
from lit_align.compat.lightning import StepPosition, is_accumulating, release_children, validation_follows
from lit_align.interrupts import SIGNAL_NAMES, Stopped, handle_signals, waiting
from lit_align.modules.base import LitBase
from lit_align.modules.reports import sums_of
from lit_align.modules.step_totals import BATCHES_IN_STEP

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


class FinalValidation(Callback):
    """Lets a validation follow the last step also where ``max_steps`` ends inside an epoch."""

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        ends = 0 < trainer.max_steps <= trainer.global_step and not is_accumulating(trainer)
        if ends and any(trainer.num_val_batches):
            trainer.should_stop = True  # Lightning then validates before it ends


class ShownMetrics:
    """What a progress bar shows: the last reported loss, reward accuracy and tokens per second."""

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the texts by their labels.

        Args:
            trainer: of the run.
            pl_module: of the run.
        """
        known = trainer.callback_metrics
        values = {label: float(known[name]) for label, name in SHOWN_METRICS.items() if name in known}
        return {label: f"{value:.0f}" if value >= 100 else f"{value:.3f}" for label, value in values.items()}


class NotebookProgressBar(ShownMetrics, TQDMProgressBar):
    """One line for notebooks, which tqdm redraws in place.

    Validations have no bar of their own: it would be a second line, and notebooks cannot move the cursor back up.
    For a ``Trainer`` of your own: ``Trainer(callbacks=[NotebookProgressBar()])``.

    Args:
        refresh_rate: steps between redraws.
    """

    def __init__(self, refresh_rate: int = 1) -> None:
        super().__init__(refresh_rate=refresh_rate)

    @override
    def init_validation_tqdm(self) -> Tqdm:
        return Tqdm(disable=True) if self.trainer.state.fn == "fit" else super().init_validation_tqdm()

    @override
    def init_sanity_tqdm(self) -> Tqdm:
        return Tqdm(disable=True)


class ProgressBar(ShownMetrics, RichProgressBar):
    """Rich's progress bar for terminals, in one line of 100 columns; it ends before the results are printed."""

    @override
    def configure_columns(self, trainer: Trainer) -> list[Any]:
        description, bar, batches, time, _ = super().configure_columns(trainer)  # without steps per second
        bar.bar_width = 20
        return [description, bar, batches, time]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_progress()  # Lightning would in `teardown`, and whatever is printed until then stands above it

    @override
    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs  # Lightning would count to -2 if the last epoch is not known
        return f"Epoch {current_epoch}" if last is None or last < 0 else f"Epoch {current_epoch}/{last - 1}"


class GracefulStop(Callback):
    """Saves a checkpoint on SIGTERM and Ctrl-C and ends the run, with exit code 143 or 130.

    The handler only sets a flag; the ranks agree on it at the end of the optimizer step, where a collective is safe.
    (A collective inside the signal handler, as Lightning has it, can hang a rank that is in its backward pass.) A
    single process that waits for a data source or a score function is interrupted: the checkpoint is then that of the
    last step, which a resumed run continues. A process that begins to wait after the signal, or one of several, is
    interrupted after ten seconds; of several processes none saves then. Ctrl-C after a
    signal ends the process at once; a repeated SIGTERM changes nothing.
    """

    def __init__(self) -> None:
        self._position: StepPosition | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handlers that Lightning has registered before."""
        waiting.received, waiting.may_stop = 0, trainer.world_size == 1
        handle_signals(self._receive)

    def _on_evaluation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            handle_signals()

    on_validation_start = on_test_start = on_predict_start = _on_evaluation_start

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = bool(waiting.received)
        if (waiting.on and waiting.may_stop) or (again and number == signal.SIGINT):
            raise Stopped(number)
        if again:  # launchers repeat SIGTERM to every process: the checkpoint of this step is not to be lost to that
            return
        signal.signal(signal.SIGALRM, self._lose_patience)
        waiting.received = number
        name = SIGNAL_NAMES[signal.Signals(number)]
        print(f"{name}: stopping after this step; a Ctrl-C from now on stops at once", file=sys.stderr, flush=True)
        waiting.limit()

    def _lose_patience(self, number: int, frame: FrameType | None) -> None:
        if waiting.on and waiting.received:
            raise Stopped(waiting.received)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after an optimizer step, unless a validation follows, which belongs to the step."""
        if not is_accumulating(trainer):
            if trainer.world_size == 1:
                self._position = StepPosition.of(trainer, _sums(trainer, pl_module))
            if not validation_follows(trainer):
                self._stop_if_received(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not is_accumulating(trainer):
            self._stop_if_received(trainer)

    def _stop_if_received(self, trainer: Trainer) -> None:
        """Save and stop if any rank has received a signal."""
        if trainer.strategy.reduce_boolean_decision(waiting.received > 0, all=False):
            path = checkpoint_folder(trainer.default_root_dir) / INTERRUPTED
            trainer.save_checkpoint(path)
            release_children(trainer)  # before they may end
            trainer.strategy.barrier()
            handle_signals(_ignore)
            stopped = Stopped(waiting.received or signal.SIGTERM, in_order=True)
            _tell(trainer, stopped, path)
            raise stopped

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the position of the last step if a signal has interrupted what this process was waiting for."""
        if not isinstance(exception, Stopped) or exception.in_order or trainer.state.fn != "fit":
            return
        handle_signals(_ignore)
        release_children(trainer)
        if self._position is None or trainer.world_size > 1:
            rank_zero_info(f"stopped by {exception.name} at step {trainer.global_step}, without a new checkpoint")
            return
        path = checkpoint_folder(trainer.default_root_dir) / INTERRUPTED
        self._position.save(trainer, path)
        _tell(trainer, exception, path)


def _tell(trainer: Trainer, stopped: Stopped, path: Path) -> None:
    rank_zero_info(f"stopped by {stopped.name} after step {trainer.global_step}; go on with --ckpt_path {path}")


def _sums(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """Return the entries of a checkpoint that batches change before their step is taken; empty where none does."""
    if trainer.accumulate_grad_batches == 1 or not isinstance(module, LitBase):
        return {}
    return {"sums": sums_of(module.summed_metrics, module.step_totals, trainer.strategy), BATCHES_IN_STEP: 0}


def _ignore(number: int, frame: FrameType | None) -> None:
    """Ignore a signal: the process is ending already."""
