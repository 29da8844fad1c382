"""Writes checkpoints atomically, at the ends of optimizer steps, and reads those that are undamaged."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_align.callbacks.checkpointing.checksums import (
    ChecksumWriter,
    damage,
    newest_first,
    newest_intact,
    put_in_place,
    remove,
    restore_older,
)
from lit_align.callbacks.checkpointing.sharded import read_plain, read_whole
from lit_align.compat.lightning import (
    StepCheckpoint,
    callbacks_of,
    count_begun_epoch,
    epoch_under_way,
    is_accumulating,
    save_at_step_ends,
    seconds_between_validations,
    validation_follows,
    writes_files,
)
from lit_align.errors import check_range
from lit_align.modules.step_totals import check_weights

INTERRUPTED = "interrupt.ckpt"
"""Name of the checkpoint that is saved on SIGTERM."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its target, appends a checksum, flushes it, and renames it.

    A crash leaves the old checkpoint or the new one, never a part of one, even if the system's folder for temporary
    files is on another file system. The checksum (size and SHA-256 of all before it) is verified before reading.

    Args:
        inspect: called with every checkpoint that is read, before it is used; raises if the checkpoint does not fit.
    """

    def __init__(self, inspect: Callable[[dict[str, Any]], None] | None = None) -> None:
        super().__init__()
        self.inspect = inspect

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_space(target, bytes_of(checkpoint))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                _write(checkpoint, ChecksumWriter(file))
            put_in_place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    @override
    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None) -> Any:
        """Read an undamaged local file, or folder of shards, of tensors and plain data only."""
        file = local_checkpoint(path)
        checkpoint = read_whole(file) if file.is_dir() else read_plain(file, map_location)
        if self.inspect is not None:
            self.inspect(checkpoint)
        return checkpoint


def _write(checkpoint: dict[str, Any], writer: ChecksumWriter) -> None:
    try:
        torch.save(checkpoint, cast(IO[bytes], writer))
    except RuntimeError as error:  # from closing the archive after a failed write
        raise writer.failed or error from None
    writer.close()


def local_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the path of an existing, undamaged checkpoint.

    Raises:
        ValueError: it is a URL, or damaged; names the newest intact checkpoint beside it.
        FileNotFoundError: there is no such file or folder.
    """
    if "://" in str(path):
        raise ValueError(f"checkpoint {path}: expected a local file; checkpoints are not read from URLs")
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"checkpoint not found: {file}")
    problem = damage(file)
    if problem is not None:
        other = newest_intact(file.parent, but=file)
        hint = f"; the newest intact one beside it is {other}" if other is not None else ""
        raise ValueError(f"checkpoint {file} is damaged: {problem}{hint}")
    return file


def bytes_of(state: Any) -> int:
    """Return the bytes of all tensors in nested mappings and lists.

    >>> bytes_of({"a": torch.zeros(3), "b": [torch.zeros(2, dtype=torch.float64), "text"]})
    28
    """
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        return sum(map(bytes_of, state.values()))
    return sum(map(bytes_of, state)) if isinstance(state, list | tuple) else 0


def check_space(target: Path, needed: int) -> None:
    """Raise if a checkpoint does not fit on the disk, before any of it is written.

    Raises:
        OSError: there is no room for ``needed`` bytes beside ``target``.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        message = f"no room for a checkpoint of {needed:,} bytes, {free:,} are free; older checkpoints are untouched"
        raise OSError(errno.ENOSPC, message, str(target))


class Checkpoints(StepCheckpoint):
    """Keeps the newest checkpoints under ``checkpoints/``, with ``last.ckpt`` pointing at the newest.

    Saves at the ends of optimizer steps only: a checkpoint inside an accumulation window would lose the gradients
    summed so far, and a resumed run would differ from an uninterrupted one.

    Args:
        every_n_steps: optimizer steps between two checkpoints; one more is written when training ends.
        keep: how many to keep; -1 keeps all.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 2) -> None:
        check_range("Checkpoints: every_n_steps", every_n_steps, 1)
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
        self.every_n_steps = every_n_steps

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        seconds = seconds_between_validations(trainer)
        if stage == "fit" and seconds is not None and trainer.world_size > 1:
            raise ValueError(
                f"trainer.val_check_interval is a time ({seconds:g} s), and {trainer.world_size} processes do not "
                "agree on the batch where it is over; expected a number of batches or a share of an epoch"
            )
        if stage == "fit":
            for other in callbacks_of(trainer):
                if isinstance(other, ModelCheckpoint) and other is not self:
                    save_at_step_ends(other)
        self.dirpath = self.dirpath or str(checkpoint_folder(trainer.default_root_dir))
        if stage == "fit" and trainer.is_global_zero and writes_files(trainer):
            _prepare_folder(Path(self.dirpath))  # fail before anything is loaded rather than at the first save
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        count_begun_epoch(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the end of an optimizer step, unless a validation follows: a resumed run would omit it."""
        if not validation_follows(trainer) and not is_accumulating(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step % self.every_n_steps == 0 and not is_accumulating(trainer):
            self.save(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with epoch_under_way(trainer):
            self.save(trainer)

    @override
    def find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """Return the newest intact checkpoint, also that of a run that was stopped.

        Raises:
            ValueError: there are checkpoints, and all are damaged.
        """
        folder = Path(self.dirpath or checkpoint_folder(trainer.default_root_dir))
        damaged: list[str] = []
        for path in newest_first(folder):
            problem = damage(path)
            if problem is None:
                for line in damaged:
                    rank_zero_warn(f"{line}; going on from {path}, the newest that is intact")
                return {str(path)}
            damaged.append(f"checkpoint {path} is damaged: {problem}")
        if damaged:
            raise ValueError("\n".join(["no checkpoint is intact:", *damaged]))
        return set()

    @override
    def before_save(self, trainer: Trainer) -> None:
        check_weights(trainer)  # weights that are not finite must not replace a good checkpoint

    @override
    def may_remove(self, path: str) -> bool:
        """Allow removal in the run's own folder only; names of older checkpoints come from a checkpoint."""
        folder, name = Path(self.dirpath or "").resolve(), Path(path)
        return "://" not in path and name.name.endswith(".ckpt") and name.parent.resolve() == folder


def checkpoint_folder(run: str | Path) -> Path:
    """Return the folder of a run's checkpoints; it is fixed, so that ``--ckpt_path last`` finds them.

    >>> checkpoint_folder("runs/mine").as_posix()
    'runs/mine/checkpoints'
    """
    return Path(run) / "checkpoints"


def _prepare_folder(folder: Path) -> None:
    """Raise if a folder cannot be written, and clean up what a killed process left in it."""
    folder.mkdir(parents=True, exist_ok=True)
    restore_older(folder)
    for leftover in folder.glob(".*.tmp"):
        remove(leftover)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
