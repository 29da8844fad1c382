"""Private parts of Lightning, tried with version 2.6.6; ``tests/compat`` fails when they change."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer
from typing_extensions import override


class StepCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose decisions can be overridden under public names.

    Lightning decides in private methods which checkpoint ``--ckpt_path last`` means, which older ones are removed, and
    whether an epoch's end or a validation saves.
    """

    def find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return what ``--ckpt_path last`` may mean; Lightning takes the one that was changed last."""
        return super()._find_last_checkpoints(trainer)

    def before_save(self, trainer: Trainer) -> None:
        """Raise if no checkpoint may be written now."""

    def may_remove(self, path: str) -> bool:
        """Return whether an older checkpoint may be removed if Lightning wants to remove it."""
        return True

    def save(self, trainer: Trainer) -> None:
        """Save a checkpoint and remove older ones, unless this step has been saved."""
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)

    @override
    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return self.find_last_checkpoints(trainer)

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.before_save(trainer)
        super()._save_checkpoint(trainer, filepath)

    @override
    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        return self.may_remove(previous) and super()._should_remove_checkpoint(trainer, previous, current)


def save_at_step_ends(checkpoint: ModelCheckpoint) -> None:
    """Let a ModelCheckpoint save at the ends of optimizer steps only, and put off what falls inside of one.

    Its hooks are replaced on the instance: Lightning finds its state by the name of its class, which must stay.
    """
    after_validation, after_batch = checkpoint.on_validation_end, checkpoint.on_train_batch_end
    postponed = False

    def on_validation_end(trainer: Trainer, pl_module: LightningModule) -> None:
        nonlocal postponed
        inside = trainer.state.fn == "fit" and not trainer.sanity_checking and is_accumulating(trainer)
        if inside and not postponed:
            rank_zero_warn(
                "a validation falls inside an optimizer step: ModelCheckpoint saves when the step has been taken, one "
                "step after the weights that were validated; let trainer.val_check_interval be a multiple of "
                "trainer.accumulate_grad_batches"
            )
        postponed = inside
        if not inside:
            after_validation(trainer, pl_module)

    def on_train_batch_end(
        trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        nonlocal postponed
        if is_accumulating(trainer):
            return
        if postponed and not validation_follows(trainer):
            postponed = False
            after_validation(trainer, pl_module)
        after_batch(trainer, pl_module, outputs, batch, batch_idx)

    replaced: Any = checkpoint
    replaced.on_validation_end, replaced.on_train_batch_end = on_validation_end, on_train_batch_end


def is_accumulating(trainer: Trainer) -> bool:
    """Return whether the current batch does not end an optimizer step."""
    return trainer.fit_loop._should_accumulate()


def is_inside_batch(trainer: Trainer) -> bool:
    """Return whether a training batch has begun and its step or accumulation has not ended."""
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(current.ready > current.processed)


def validation_follows(trainer: Trainer) -> bool:
    """Return whether a validation runs right after the training batch that is ending."""
    fetcher = trainer.fit_loop._data_fetcher
    return (
        fetcher is not None
        and any(trainer.num_val_batches)
        and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    )


def seconds_between_validations(trainer: Trainer) -> float | None:
    """Return ``val_check_interval`` if it is a time; None if it is a number of batches."""
    seconds: float | None = getattr(trainer, "_val_check_time_interval", None)
    return seconds


def count_begun_epoch(trainer: Trainer) -> None:
    """Count the current epoch as begun, which Lightning omits after resuming at the end of an epoch.

    A checkpoint would say that no epoch was under way, and a run resumed from it at the end of that epoch would go
    through its rows a second time.
    """
    progress = trainer.fit_loop.epoch_progress
    if progress.current.ready == progress.current.completed:
        progress.increment_ready()
        progress.increment_started()


@contextmanager
def epoch_under_way(trainer: Trainer) -> Iterator[None]:
    """Undo that Lightning counts the epoch in which training ended as completed: a longer run continues in it."""
    loop = trainer.fit_loop
    counts: tuple[Any, Any] = (loop.epoch_progress.current, loop.epoch_progress.total)
    early = int(not loop.epoch_loop.batch_progress.is_last_batch and counts[0].completed == counts[0].started)
    try:
        for count in counts:
            count.processed -= early
            count.completed -= early
        yield
    finally:
        for count in counts:
            count.processed += early
            count.completed += early


@dataclass(frozen=True)
class StepPosition:
    """Where a run stood at the end of an optimizer step: its progress, its place in the data, its sums.

    Args:
        loops: state of Lightning's loops.
        others: other entries of a checkpoint, by their keys.
    """

    loops: dict[str, Any]
    others: dict[str, Any]

    @classmethod
    def of(cls, trainer: Trainer, sums: dict[str, Any]) -> StepPosition:
        """Return the position after the optimizer step that is ending.

        Args:
            trainer: of the run.
            sums: entries of a checkpoint that change before the next step is taken.
        """
        data: Any = getattr(trainer, "datamodule", None)
        states = {} if data is None else {type(data).__qualname__: data.state_dict()}
        return cls(*copy.deepcopy((trainer._checkpoint_connector._get_loops_state_dict(), states | sums)))

    def save(self, trainer: Trainer, path: Path) -> None:
        """Save a checkpoint of this position, of which the weights are still those of the step."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        checkpoint |= {"loops": self.loops, **self.others}
        trainer.strategy.save_checkpoint(checkpoint, path)


def writes_files(trainer: Trainer) -> bool:
    """Return whether a run writes files: not with ``fast_dev_run``, which Lightning sets without declaring it."""
    return not getattr(trainer, "fast_dev_run", False)


def callbacks_of(trainer: Trainer) -> list[Any]:
    """Return the callbacks of a trainer, an attribute that Lightning sets without declaring it."""
    host: Any = trainer
    return list(host.callbacks)


def process_timeout(trainer: Trainer) -> timedelta:
    """Return how long a process waits for one that does not answer."""
    timeout: timedelta | None = getattr(trainer.strategy, "_timeout", None)
    return timeout or default_pg_timeout


def child_processes(trainer: Trainer) -> Sequence[subprocess.Popen[bytes]]:
    """Return the processes that this one started for the other ranks."""
    processes: Sequence[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", ())
    return processes


def release_children(trainer: Trainer) -> None:
    """Keep Lightning from killing this process when one that it has started ends.

    Lightning looks every five seconds whether one has ended with another code than 0, as after a signal, and then
    kills all, this one too, which may not have left yet. It gets an empty list to look at; the launcher keeps them.
    """
    launcher: Any = trainer.strategy.launcher
    observed = getattr(launcher, "procs", None)
    if observed:
        launcher.procs = list(observed)
        observed.clear()


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer inside of a LightningOptimizer."""
    inner: Optimizer = getattr(optimizer, "_optimizer", optimizer)
    return inner
