"""Batches of prepared splits: the part of the data module that depends on neither sources nor texts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_align.data.batches.collate import Collate, Padding
from lit_align.data.batches.dataset import Mismatch, PairDataset, lost_batches
from lit_align.data.batches.loader import BatchBudget, ResumableLoader, check_same_data, evaluation_loader
from lit_align.data.batches.sampler import PairBatches, Share, rows_of_steps
from lit_align.data.prepared.prepare import Split
from lit_align.types import PairBatch


class BatchedData(LightningDataModule):
    """A data module of prepared splits: their loaders, and the position in the training data that a run resumes at.

    Args:
        budget: size of the batches.
        max_length: maximum number of tokens of prompt and response together.
        mismatched: build batches of each prompt with the responses of another row as well.
        num_workers: worker processes per loader.
        seed: seed of the order of the training pairs.
    """

    def __init__(self, budget: BatchBudget, max_length: int, mismatched: bool, num_workers: int, seed: int) -> None:
        super().__init__()
        self.budget = budget
        self.max_length = max_length
        self.mismatched = mismatched
        self.num_workers = num_workers
        self.seed = seed
        self.splits: dict[str, Split] = {}
        self._datasets: dict[str, PairDataset] = {}
        self.pack: Callable[[PairBatch], PairBatch] | None = None
        self._loader: ResumableLoader | None = None
        self._position: dict[str, Any] | None = None
        self._saved_ends: frozenset[int] = frozenset()

    @property
    @abstractmethod
    def pad_token(self) -> int:
        """Padding id."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the training data and its tokens are made of, in a checkpoint."""

    @property
    def train_batches(self) -> int:
        """Training batches per rank and epoch, also before the loader exists."""
        return len(self._training_batches())

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Lightning would wait for every tensor of a batch that is not a tensor itself.
        if isinstance(batch, PairBatch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @override
    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches of about equal lengths, starting at the restored position."""
        self._loader = ResumableLoader(
            self._dataset("train"), self._training_batches(), self._collate, self._limit(), self.num_workers
        )
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    @override
    def val_dataloader(self) -> DataLoader[PairBatch] | list[DataLoader[PairBatch]]:
        return self._evaluation("validation") if "validation" in self.splits else []

    @override
    def test_dataloader(self) -> DataLoader[PairBatch]:
        return self._evaluation("test")

    @override
    def predict_dataloader(self) -> DataLoader[PairBatch]:
        return self._evaluation("predict")

    @override
    def on_exception(self, exception: BaseException) -> None:
        batches = lost_batches(exception, self._datasets, self.splits)
        if batches:
            exception.add_note(batches)

    def rows_dataloader(self, split: str, rows: Sequence[int]) -> DataLoader[PairBatch]:
        """Return some rows of a split in the given order, all of them in this process."""
        return self._evaluation(split, Share(1), rows)

    def _evaluation(
        self, split: str, share: Share | None = None, rows: Sequence[int] | None = None
    ) -> DataLoader[PairBatch]:
        dataset = self._dataset(split)
        batches = self.budget.evaluation(dataset.widths, share or self.share, rows)
        return evaluation_loader(dataset, batches, self._collate, self.num_workers)

    def training_rows(self, steps: int) -> list[int]:
        """Return the positions of the training pairs that the first optimizer steps use, over all processes."""
        return rows_of_steps(self._training_batches(), self._limit(), steps)

    def _training_batches(self) -> PairBatches:
        return self.budget.training(self._dataset("train").widths, self.share, self.seed)

    def _dataset(self, split: str) -> PairDataset:
        if split not in self._datasets:
            prepared, mismatch = self.splits[split], None
            if self.mismatched:
                try:
                    mismatch = Mismatch.of(prepared.store, self.seed, self.max_length)
                except ValueError as error:
                    raise ValueError(f"data.{split}: {error}") from None
            self._datasets[split] = PairDataset(prepared.store, prepared.values, mismatch)
        return self._datasets[split]

    @property
    def _collate(self) -> Collate:
        return Collate(self.pad_token, self.pack)

    @property
    def padding(self) -> Padding:
        """Sizes and padding of the training batches of an epoch."""
        prompt, chosen, rejected, _ = self.splits["train"].store.part_lengths.T
        return Padding.of(self._training_batches(), self._dataset("train").widths, 2 * prompt + chosen + rejected)

    @property
    def share(self) -> Share:
        """Rank, world size and accumulation of the trainer; the batch size is up to ``budget``."""
        trainer = self.trainer
        if trainer is None:
            return Share(1)
        return Share(1, trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)

    def _limit(self) -> int | None:
        """Return the number of batches of an epoch that the trainer uses."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return limit if isinstance(limit, int) else int(self.train_batches * (1.0 if limit is None else limit))

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence of all splits."""
        return max((max(self._dataset(split).widths, default=0) for split in self.splits), default=0)

    @property
    def response_ends(self) -> frozenset[int]:
        """Ids that end the responses of the data; without data, those of the checkpoint that was loaded."""
        if not self.splits:
            return self._saved_ends
        return frozenset(token for split in self.splits.values() for token in split.stop_tokens)

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data, and the identity of that data."""
        if self._loader is None:
            return {}
        ends = sorted(self.response_ends)
        return {"position": self._loader.state_dict(), "response_ends": ends, **self._whole_identity}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position.

        Raises:
            ValueError: the position is in other data, or in the middle of an epoch of other batches.
        """
        self._saved_ends = frozenset(state_dict.get("response_ends", ()))
        if not state_dict or "train" not in self.splits:
            return
        check_same_data(state_dict, self._whole_identity, inside_epoch=state_dict["position"]["done"] > 0)
        self._position = state_dict["position"]
        if self._loader is not None:
            self._loader.load_state_dict(self._position)

    @property
    def _whole_identity(self) -> dict[str, Any]:
        return {**self.identity, "seed": self.seed, **self._training_batches().identity}
