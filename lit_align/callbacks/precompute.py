"""Computes the log-probabilities of a ``Precomputed`` reference before the first step, unless they are cached."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track
from typing_extensions import override

from lit_align.data import PreferenceData
from lit_align.models import Precomputed
from lit_align.modules import LitModule
from lit_align.modules.step_totals import planned_steps, run_data
from lit_align.types import PairBatch

RowsBySplit: TypeAlias = dict[str, list[int]]
"""Split → positions of rows."""


class Precompute(Callback):
    """Fills the cache of a ``Precomputed`` reference for every row that the run will use, then frees its weights.

    Each process looks up, and computes, its share of the rows; then all read everything. Runs with another reference
    are not affected.
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the weights, after callbacks that use the reference when training starts."""
        reference = _reference_of(pl_module)
        if reference is not None and isinstance(pl_module, LitModule):
            reference.release()
            pl_module.readers.keep_only(pl_module.trained_model)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":  # a fit has computed the validation rows before
            self._prepare(trainer, pl_module)
            self.on_train_epoch_start(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module)

    def _prepare(self, trainer: Trainer, module: LightningModule) -> None:
        reference, data = _reference_of(module), run_data(trainer)
        if reference is None:
            return
        if not isinstance(data, PreferenceData):
            raise ValueError("reference Precomputed needs the run's data to be a PreferenceData")
        if isinstance(module, LitModule):
            module.check_models()  # before hours are spent on a reference of a run that will be refused
        began = time.monotonic()
        rows = _RunRows(trainer, module.device, reference, data)
        with trainer.precision_plugin.forward_context():
            reference.open(module.device)
            computed, cached = rows.prepare()
        if trainer.is_global_zero:
            counts = f"{computed} rows computed, {cached} found, {time.monotonic() - began:.1f} s"
            Console(soft_wrap=True).print(f"[bold]reference[/]  {counts}: {reference.store.folder}", highlight=False)


class _RunRows:
    """The rows of one run, looked up and computed by all its processes together."""

    def __init__(self, trainer: Trainer, device: torch.device, reference: Precomputed, data: PreferenceData) -> None:
        self.trainer = trainer
        self.device = device
        self.reference = reference
        self.data = data

    def prepare(self) -> tuple[int, int]:
        """Compute the rows that are not cached; return how many were computed, and how many cached."""
        used = {split: self._used_rows(split) for split in self.data.splits}
        share = {split: rows[self.trainer.global_rank :: self.trainer.world_size] for split, rows in used.items()}
        missing = self._missing(share)
        cached = {split: sorted(set(rows) - set(missing[split])) for split, rows in share.items()}
        if self.reference.has_weights:
            self._check(cached)
            try:
                self._compute(missing, share)
            finally:
                self.reference.store.flush()
        elif any(missing.values()):
            counts = ", ".join(f"{len(rows)} rows of {split}" for split, rows in missing.items() if rows)
            raise ValueError(
                f"{self.reference.store.folder}: {counts} are not there, and the reference's weights were given back "
                "when training began; expected rows that were computed before, or a new module"
            )
        self.trainer.strategy.barrier()
        self.reference.store.load()
        still_missing = self._missing(missing)
        if any(still_missing.values()):
            raise ValueError(
                f"{self.reference.store.folder}: rows {still_missing} are not there although they were computed; "
                "expected a folder (model.reference.cache) on a file system that all processes share"
            )
        return self._total(missing), self._total(cached)

    def _used_rows(self, split: str) -> list[int]:
        """Return the training rows that the run's steps will reach, or all rows of another split."""
        if split == "train":
            return self.data.training_rows(planned_steps(self.trainer))
        is_used = split != "validation" or self.trainer.limit_val_batches != 0
        return list(range(len(self.data.splits[split].store))) if is_used else []

    def _missing(self, rows: RowsBySplit) -> RowsBySplit:
        """Return those of the rows that are not cached."""
        return {
            split: [
                row
                for batch in self._with_progress(self._batches(split, part), f"looking up the reference of {split}")
                for row in batch.index[torch.from_numpy(self.reference.missing(batch))].tolist()
            ]
            for split, part in rows.items()
        }

    def _compute(self, missing: RowsBySplit, share: RowsBySplit) -> None:
        """Compute rows, in the same number of batches in every process: sharded weights are gathered for each."""
        for split, rows in missing.items():
            widths = self.data.splits[split].store.widths
            batches = self._batches(split, sorted(rows, key=widths.__getitem__, reverse=True))
            batch_count = self._reduce(len(batches))
            for batch in self._with_progress(batches, f"computing the reference of {split}"):
                self.reference.compute(batch.to(self.device))
            spare = rows[:1] or share[split][:1] or [0]
            for _ in range(batch_count - len(batches)):
                for batch in self._batches(split, spare):
                    self.reference.compute(batch.to(self.device), keep=False)

    def _check(self, cached: RowsBySplit) -> None:
        """Recompute some cached rows and compare, in as many batches in every process, if all of them have any."""
        generator = np.random.default_rng()
        for split, rows in cached.items():
            count = min(self._reduce(len(rows), "min"), self.reference.checked_rows)
            for row in generator.choice(rows, count, replace=False).tolist() if count else []:
                for batch in self._batches(split, [row]):
                    self.reference.check(batch.to(self.device))

    def _batches(self, split: str, rows: Sequence[int]) -> Any:
        return self.data.rows_dataloader(split, rows)

    def _with_progress(self, batches: Any, text: str) -> Iterator[PairBatch]:
        """Iterate over batches, with a progress bar if rank zero writes to a terminal."""
        console = Console(stderr=True)
        shows = console.is_terminal and self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        if not shows or not len(batches):
            return iter(batches)
        return iter(track(batches, text, len(batches), console=console, transient=True))

    def _reduce(self, number: int, operation: str = "max") -> int:
        """Reduce a number over all processes."""
        if self.trainer.world_size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        return int(torch.as_tensor(self.trainer.strategy.reduce(value, reduce_op=operation)))

    def _total(self, rows: RowsBySplit) -> int:
        return self._reduce(sum(map(len, rows.values())), "sum")


def _reference_of(module: LightningModule) -> Precomputed | None:
    reference = getattr(module, "reference", None)
    if not isinstance(reference, Precomputed):
        return None
    if not isinstance(module, LitModule) or module.task == "online":
        raise ValueError(
            "model.reference Precomputed keeps the log-probs of responses that are known before training; expected "
            "another reference for responses that are drawn while training"
        )
    return reference
