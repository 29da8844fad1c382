"""Batch sizes, and data loaders that can be resumed in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import PairDataset
from lit_align.data.batches.sampler import BucketedBatches, PairBatches, SequentialBatches, Share, TokenBatches
from lit_align.errors import check_range
from lit_align.interrupts import waiting
from lit_align.types import PairBatch

DEFAULT_BATCH_SIZE = 8


@final
@dataclass(frozen=True)
class BatchBudget:
    """The size of the batches of one process: a number of pairs, or a number of tokens.

    Args:
        pairs: pairs in a training batch; None if ``tokens`` is set.
        tokens: tokens of both sides with padding in a batch; None if ``pairs`` is set.
        eval_pairs: pairs in an evaluation batch; None for as many of the longest pair as fit into ``tokens``.
    """

    pairs: int | None
    tokens: int | None = None
    eval_pairs: int | None = None

    @classmethod
    def from_settings(
        cls, batch_size: int | None, tokens_per_batch: int | None, eval_batch_size: int | None
    ) -> BatchBudget:
        """Build the budget from the settings of the data module.

        Raises:
            ValueError: a number is out of range, or both pairs and tokens are set.

        >>> BatchBudget.from_settings(None, None, None)
        BatchBudget(pairs=8, tokens=None, eval_pairs=8)
        """
        check_range("data.batch_size", batch_size, 1)
        check_range("data.tokens_per_batch", tokens_per_batch, 2)
        check_range("data.eval_batch_size", eval_batch_size, 1)
        if tokens_per_batch is not None:
            if batch_size is not None:
                raise ValueError("data.batch_size and data.tokens_per_batch are both set; expected one of them")
            return cls(None, tokens_per_batch, eval_batch_size)
        pairs = batch_size or DEFAULT_BATCH_SIZE
        return cls(pairs, None, eval_batch_size or pairs)

    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """Return the sampler of the training batches."""
        if self.tokens is not None:
            return TokenBatches(widths, self.tokens, share, seed)
        return BucketedBatches(widths, replace(share, batch_size=self.pairs or DEFAULT_BATCH_SIZE), seed)

    def evaluation(self, widths: Sequence[int], share: Share, rows: Sequence[int] | None = None) -> SequentialBatches:
        """Return the sampler of evaluation batches.

        Args:
            widths: length of each pair, in tokens of one side.
            share: rank and world size.
            rows: positions of the pairs to evaluate; None for all, in the order of the data.
        """
        rows = range(len(widths)) if rows is None else rows
        fitting = max(1, (self.tokens or 0) // (2 * max((widths[row] for row in rows), default=1)))
        return SequentialBatches(rows, replace(share, batch_size=self.eval_pairs or fitting))

    def step_size(self, share: Share) -> int:
        """Return the number of pairs in an optimizer step; 0 if it varies from step to step."""
        return 0 if self.pairs is None else replace(share, batch_size=self.pairs).step_size


def _settings(dataset: PairDataset, batches: PairBatches, collate: Collate, num_workers: int) -> dict[str, Any]:
    """Return the arguments of a loader. Automatic batching is off: the sampler yields whole batches."""
    dataset.follow_workers(num_workers)
    return {
        "dataset": dataset,
        "sampler": batches,
        "batch_size": None,
        "collate_fn": collate,
        "num_workers": num_workers,
        "pin_memory": torch.cuda.is_available(),
        "generator": torch.Generator(),
    }


@final
class ResumableLoader(DataLoader[PairBatch]):
    """Training loader whose state is the number of batches that it has delivered.

    Batches count when they are delivered, so that workers may read ahead. The batches are passed as ``sampler``,
    because that is where Lightning looks for ``set_epoch``.

    Args:
        dataset: the training pairs.
        batches: the batches of an epoch.
        collate: builds the tensors.
        limit: number of batches of an epoch that are used; None for all.
        num_workers: worker processes; 0 collates in this process.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batches: PairBatches,
        collate: Collate,
        limit: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(**_settings(dataset, batches, collate, num_workers), persistent_workers=num_workers > 0)
        self._batches = batches
        self._used = max(1, len(batches) if limit is None else min(limit, len(batches)))
        self._done = 0
        self._resume_from = 0

    @override
    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        # Nothing may follow the last yield: no caller asks for more batches than there are.
        self._done, self._resume_from = self._resume_from, 0
        self._batches.skip = self._done
        batches = super().__iter__()
        while True:
            with waiting.for_code_of_others("the data"):
                batch = next(batches, None)
            if batch is None:
                return
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch and the number of batches delivered in it, 0 after the last one."""
        return {"done": self._done % self._used, "epoch": self._batches.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start the next pass after the batches that were delivered."""
        self._resume_from = state_dict["done"]


def evaluation_loader(
    dataset: PairDataset, batches: PairBatches, collate: Collate, num_workers: int = 0
) -> DataLoader[PairBatch]:
    """Return a loader that always starts at the first batch.

    It is a plain ``DataLoader``, because Lightning rebuilds it from its arguments before it predicts.
    """
    return DataLoader(**_settings(dataset, batches, collate, num_workers))


_MEANING = {
    "fingerprint": "the fingerprint of the tokenized pairs",
    "template": "the hash of the chat template",
    "date": "the date that the chat template is told (data.template_date)",
    "render": "how dialogues written as text are rendered (data.render)",
    "global_batch": "the number of pairs per batch of all processes",
    "step": "the number of pairs per optimizer step",
    "tokens": "data.tokens_per_batch",
    "processes": "the number of processes",
    "accumulate": "trainer.accumulate_grad_batches",
    "seed": "data.seed",
}


def check_same_data(saved: Mapping[str, Any], current: Mapping[str, Any], inside_epoch: bool) -> None:
    """Raise unless a saved position can be resumed in the current data.

    Other pairs are always refused. Other batches of the same pairs are refused only in the middle of an epoch. The
    chat template, its date and what it renders are mentioned only if they may explain why the pairs differ.

    Raises:
        ValueError: the data differs; the message names each difference with both values.
    """
    changed = [key for key in _MEANING if saved.get(key) != current.get(key)]
    if "fingerprint" not in changed:
        changed = [key for key in changed if key not in ("template", "date", "render")] if inside_epoch else []
    if changed:
        differences = "; ".join(f"{_MEANING[key]} was {saved.get(key)} and is {current.get(key)}" for key in changed)
        raise ValueError(
            f"the training data is not that of the checkpoint: {differences}. "
            "Resume with the data and settings of the first run, or start anew from its weights"
        )
