"""A precomputed reference is computed before the first step, as far as it is not on disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import track

from lit_align.data import PreferenceData
from lit_align.models import Precomputed
from lit_align.modules import LitPreference
from lit_align.modules.step_totals import optimizer_steps, run_data
from lit_align.types import PairBatch

Rows: TypeAlias = dict[str, list[int]]
"""Split → positions of rows."""


class Precompute(Callback):
    """Fills the cache of a ``Precomputed`` reference for every row that the run will see, and gives its weights back.

    Every process looks up, and computes, its share of the rows; then all read everything. Another kind of reference
    is left alone.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing of the training rows that the steps will reach, and of all validation rows."""
        self._prepare(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the weights back, behind what else looks at the reference before training."""
        reference = _reference(pl_module)
        if reference is not None:
            reference.release()
            if isinstance(pl_module, LitPreference):
                pl_module.readers.keep_only(pl_module.policy)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing, unless a fit has done so."""
        if trainer.state.fn == "validate":
            self._prepare(trainer, pl_module)
            self.on_train_epoch_start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing."""
        self._prepare(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute what is missing."""
        self._prepare(trainer, pl_module)

    def _prepare(self, trainer: Trainer, module: LightningModule) -> None:
        reference, data = _reference(module), run_data(trainer)
        if reference is None:
            return
        if not isinstance(data, PreferenceData):
            raise ValueError("reference Precomputed needs the run's data to be a PreferenceData")
        began = time.monotonic()
        work = _Work(trainer, module.device, reference, data)
        with trainer.precision_plugin.forward_context():
            reference.open(module.device)
            computed, found = work()
        if trainer.is_global_zero:
            took = f"{computed} rows computed, {found} found, {time.monotonic() - began:.1f} s"
            Console(soft_wrap=True).print(f"[bold]reference[/]  {took}: {reference.store.folder}", highlight=False)


class _Work:
    """The rows of one run, looked up and computed by all its processes."""

    def __init__(self, trainer: Trainer, device: torch.device, reference: Precomputed, data: PreferenceData) -> None:
        self.trainer = trainer
        self.device = device
        self.reference = reference
        self.data = data

    def __call__(self) -> tuple[int, int]:
        """Rows that were computed, and rows that were there, of all processes."""
        wanted = {split: self._wanted(split) for split in self.data.splits}
        share = {split: rows[self.trainer.global_rank :: self.trainer.world_size] for split, rows in wanted.items()}
        missing = self._missing(share)
        there = {split: sorted(set(rows) - set(missing[split])) for split, rows in share.items()}
        if self.reference.has_weights:
            self._check(there)
            try:
                self._compute(missing, share)
            finally:
                self.reference.store.flush()
        elif any(missing.values()):
            lacking = ", ".join(f"{len(rows)} rows of {split}" for split, rows in missing.items() if rows)
            raise ValueError(
                f"{self.reference.store.folder}: {lacking} are not there, and the reference's weights were given back "
                "when training began; expected rows that were computed before, or a new module"
            )
        self.trainer.strategy.barrier()
        self.reference.store.load()
        left = self._missing(missing)
        if any(left.values()):
            raise ValueError(
                f"{self.reference.store.folder}: rows {left} are not there although they were computed; expected a "
                "folder (model.reference.cache) on a file system that all processes share"
            )
        return self._total(missing), self._total(there)

    def _wanted(self, split: str) -> list[int]:
        if split == "train":
            return self.data.training_rows(optimizer_steps(self.trainer))
        used = split != "validation" or self.trainer.limit_val_batches != 0
        return list(range(len(self.data.splits[split].store))) if used else []

    def _missing(self, rows: Rows) -> Rows:
        """Those of the rows whose values are not there."""
        found: Rows = {}
        for split, mine in rows.items():
            lost = [
                batch.index[torch.from_numpy(self.reference.missing(batch))].tolist()
                for batch in self._shown(self._batches(split, mine), f"looking up the reference of {split}")
            ]
            found[split] = [row for part in lost for row in part]
        return found

    def _compute(self, missing: Rows, share: Rows) -> None:
        """As many batches in every process, so that weights that are shared out can be gathered."""
        for split, rows in missing.items():
            widths = self.data.splits[split].store.widths
            batches = self._batches(split, sorted(rows, key=widths.__getitem__, reverse=True))
            most = self._most(len(batches))
            for batch in self._shown(batches, f"computing the reference of {split}"):
                self.reference.compute(batch.to(self.device))
            spare = rows[:1] or share[split][:1] or [0]
            for _ in range(most - len(batches)):
                for batch in self._batches(split, spare):
                    self.reference.compute(batch.to(self.device), keep=False)

    def _check(self, there: Rows) -> None:
        """Score some rows again; as many batches in every process, if all of them have any."""
        choose = np.random.default_rng()
        for split, rows in there.items():
            count = min(self._most(len(rows), "min"), self.reference.checked_rows)
            for row in choose.choice(rows, count, replace=False).tolist() if count else []:
                for batch in self._batches(split, [row]):
                    self.reference.check(batch.to(self.device))

    def _batches(self, split: str, rows: Sequence[int]) -> Any:
        return self.data.rows_dataloader(split, rows)

    def _shown(self, batches: Any, words: str) -> Iterator[PairBatch]:
        """The batches; a bar at a terminal."""
        console = Console(stderr=True)
        shows = console.is_terminal and self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        if not shows or not len(batches):
            return iter(batches)
        return iter(track(batches, words, len(batches), console=console, transient=True))

    def _most(self, number: int, operation: str = "max") -> int:
        if self.trainer.world_size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        return int(torch.as_tensor(self.trainer.strategy.reduce(value, reduce_op=operation)))

    def _total(self, rows: Rows) -> int:
        return self._most(sum(map(len, rows.values())), "sum")


def _reference(module: LightningModule) -> Precomputed | None:
    found = getattr(module, "reference", None)
    if not isinstance(found, Precomputed):
        return None
    if not isinstance(module, LitPreference):
        raise ValueError(
            "model.reference Precomputed keeps the log-probs of responses that are known before training; expected "
            "another reference for responses that are drawn while training"
        )
    return found
