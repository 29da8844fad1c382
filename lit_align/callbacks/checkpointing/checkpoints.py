"""Checkpoints that are whole or not there, at the end of optimizer steps."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lit_align.callbacks.checkpointing.checksums import (
    SealedWriter,
    damage,
    newest_first,
    newest_intact,
    put_in_place,
    remove,
    restore_older,
)
from lit_align.callbacks.checkpointing.sharded import read_plain, read_tree, whole
from lit_align.modules.step_totals import check_weights

INTERRUPTED = "interrupt.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the target folder, seals it, flushes it to the disk, and renames it.

    A crash leaves the old checkpoint or the new one, never a part of one, also when the system's folder for
    temporary files is on another file system. The seal (size and SHA-256 of all before it) is looked at before a
    checkpoint is read.

    Args:
        inspect: looks at every checkpoint that is read, before any of it is used, and raises if it does not fit.
    """

    def __init__(self, inspect: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__()
        self.inspect = inspect

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``; on failure remove what was written and keep the old file."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target, bytes_of(checkpoint))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                _write(checkpoint, SealedWriter(file))
            put_in_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None) -> Any:
        """Read tensors and plain data only, from a local file, or a folder of shards, that is what was written."""
        file = local_checkpoint(path)
        checkpoint = whole(read_tree(file)) if file.is_dir() else read_plain(file, map_location)
        if self.inspect is not None:
            self.inspect(checkpoint)
        return checkpoint


def _write(checkpoint: dict[str, Any], writer: SealedWriter) -> None:
    try:
        torch.save(checkpoint, cast(IO[bytes], writer))
    except RuntimeError as error:  # of the archive that could not be closed behind a failed write
        raise writer.failed or error from None
    writer.close()


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The file or folder of a checkpoint that is there and is what was written.

    Raises:
        ValueError: it is a URL, or damaged; names the newest intact one beside it.
        FileNotFoundError: nothing is there.
    """
    if "://" in str(path):
        raise ValueError(f"checkpoint {path}: expected a local file; checkpoints are not read from URLs")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"checkpoint not found: {file}")
    wrong = damage(file)
    if wrong is not None:
        other = newest_intact(file.parent, but=file)
        hint = f"; the newest intact one beside it is {other}" if other is not None else ""
        raise ValueError(f"checkpoint {file} is damaged: {wrong}{hint}")
    return file


def bytes_of(state: Any) -> int:
    """Bytes of all tensors in nested mappings and lists.

    >>> bytes_of({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), "text"]})
    28
    """
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(bytes_of, state.values()))
    return sum(map(bytes_of, state)) if isinstance(state, list | tuple) else 0


def check_space(target: Path, needed: int) -> None:
    """Raise before the disk is full: an aborted write would have to be cleared away first.

    Raises:
        OSError: there is not room for ``needed`` bytes beside ``target``.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        message = f"no room for a checkpoint of {needed:,} bytes, {free:,} are free; older checkpoints are untouched"
        raise OSError(errno.ENOSPC, message, str(target))


class Checkpoints(ModelCheckpoint):
    """Keeps the newest checkpoints under ``checkpoints/``, with ``last.ckpt`` pointing at the newest.

    Saves at the ends of optimizer steps only: a checkpoint inside an accumulation window would lose the gradients
    gathered so far, and a resumed run would differ from one that was never stopped.

    Args:
        every_n_steps: optimizer steps between two checkpoints; one more is written when training ends.
        keep: how many to keep; -1 keeps all.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        if every_n_steps < 1:
            raise ValueError(f"Checkpoints: every_n_steps is {every_n_steps}; expected 1 or more")
        if keep < 1 and keep != -1:
            raise ValueError(f"Checkpoints: keep is {keep}; expected 1 or more, or -1 for all")
        super().__init__(
            filename="step={step}",
            monitor="step",
            mode="max",
            save_top_k=keep,
            save_last="link",
            every_n_train_steps=every_n_steps,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a folder that cannot be written before anything is loaded."""
        seconds: float | None = getattr(trainer, "_val_check_time_interval", None)
        if stage == "fit" and seconds is not None and trainer.world_size > 1:
            raise ValueError(
                f"trainer.val_check_interval is a time ({seconds:g} s), and {trainer.world_size} processes do not "
                "agree on the batch where it is over; expected a number of batches or a share of an epoch"
            )
        self.dirpath = self.dirpath or str(checkpoint_folder(trainer.default_root_dir))
        if stage == "fit" and trainer.is_global_zero:
            _probe(Path(self.dirpath))
        super().setup(trainer, pl_module, stage)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the epoch that has begun, which Lightning leaves out behind an epoch's end that a run was resumed at.

        A checkpoint would say that no epoch was under way, and a run that is resumed at that epoch's end would go
        through its rows a second time.
        """
        progress = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.completed:
            progress.increment_ready()
            progress.increment_started()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; behind the validation where one follows, or a resumed run would leave it out."""
        if not validation_follows(trainer) and not trainer.fit_loop._should_accumulate():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save when it is time."""
        if trainer.global_step % self._every_n_train_steps == 0 and not trainer.fit_loop._should_accumulate():
            self._save(trainer)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """What ``--ckpt_path last`` means: the newest checkpoint that is intact, also of a run that was stopped.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        folder = Path(self.dirpath or checkpoint_folder(trainer.default_root_dir))
        damaged: list[str] = []
        for path in newest_first(folder):
            wrong = damage(path)
            if wrong is None:
                for line in damaged:
                    rank_zero_warn(f"{line}; going on from {path}, the newest that is intact")
                return {str(path)}
            damaged.append(f"checkpoint {path} is damaged: {wrong}")
        if damaged:
            raise ValueError("\n".join(["no checkpoint is intact:", *damaged]))
        return set()

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Never of weights that are not finite: the checkpoints that are there are better."""
        check_weights(trainer)
        super()._save_checkpoint(trainer, filepath)

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """Only what lies in the run's own folder; older names come from the checkpoint that the run goes on from."""
        there, name = Path(self.dirpath or "").resolve(), Path(previous)
        own = "://" not in previous and name.name.endswith(".ckpt") and name.parent.resolve() == there
        return own and super()._should_remove_checkpoint(trainer, previous, current)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, whatever it is."""
        with _inside_epoch(trainer):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)


@contextmanager
def _inside_epoch(trainer: Trainer) -> Iterator[None]:
    """Where training ended inside an epoch, Lightning has counted the epoch as done; a longer run goes on in it."""
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


def validation_follows(trainer: Trainer) -> bool:
    """Whether a validation runs right behind the training batch that is ending; none does without its pairs."""
    fetcher = trainer.fit_loop._data_fetcher
    return (
        fetcher is not None
        and any(trainer.num_val_batches)
        and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    )


def checkpoint_folder(run: str | Path) -> Path:
    """Where a run keeps its checkpoints; fixed, so that ``--ckpt_path last`` finds them.

    >>> checkpoint_folder("runs/mine").as_posix()
    'runs/mine/checkpoints'
    """
    return Path(run) / "checkpoints"


def _probe(folder: Path) -> None:
    """Fail now rather than at the first save, and clear away what a killed process left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    restore_older(folder)
    for orphan in folder.glob(".*.tmp"):
        remove(orphan)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
