"""A loader serves the batches of a plan and knows how many it has served, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch.utils.data import DataLoader, Dataset

from lit_align.data.batches.collate import Collate, WeightedPair
from lit_align.data.batches.sampler import Item, PairBatches
from lit_align.types import PairBatch, TokenizedPair


@final
class WeightedPairs(Dataset[list[WeightedPair]]):
    """Answers a whole batch of (position, weight) at once.

    Args:
        pairs: the split.
    """

    def __init__(self, pairs: Sequence[TokenizedPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, items: list[Item] | int) -> list[WeightedPair]:
        if not isinstance(items, list):
            raise TypeError(
                f"found {items!r}; expected the (position, weight) list of a batch. The data brings its own batches "
                "for every rank: set trainer.use_distributed_sampler to false"
            )
        return [(self.pairs[index], weight) for index, weight in items]


@final
class ResumableLoader(DataLoader[PairBatch]):
    """Serves the batches of a plan; its state is the number of batches that were handed out.

    The count is of batches delivered, so workers may read ahead. The plan takes the place of a sampler, with automatic
    batching off: that is where Lightning looks for ``set_epoch``.

    Args:
        pairs: the split.
        batches: the plan.
        collate: makes the tensors.
        limit: batches that are used of an epoch, if it is cut short.
        num_workers: processes that collate; 0 does it in this one.
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        batches: PairBatches,
        collate: Collate,
        limit: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            WeightedPairs(pairs),  # type: ignore[arg-type]
            sampler=batches,
            batch_size=None,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
        )
        self._batches = batches
        self._used = max(1, len(batches) if limit is None else min(limit, len(batches)))
        self._done = 0
        self._resume_from = 0

    def __iter__(self) -> Iterator[PairBatch]:  # type: ignore[override]
        """Batches from the resumed position on; nothing may follow the last one, no caller asks for more."""
        self._done, self._resume_from = self._resume_from, 0
        self._batches.skip = self._done
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Batches handed out in this epoch (0 behind the last one), and the epoch."""
        return {"done": self._done % self._used, "epoch": self._batches.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass begin behind the batches that were handed out."""
        self._resume_from = state_dict["done"]


def evaluation_loader(
    pairs: Sequence[TokenizedPair], batches: PairBatches, collate: Collate, num_workers: int = 0
) -> DataLoader[PairBatch]:
    """Serves every batch of a plan, always from the first one.

    A plain ``DataLoader``: Lightning builds a new one from its arguments before it predicts.

    Args:
        pairs: the split.
        batches: the plan.
        collate: makes the tensors.
        num_workers: processes that collate; 0 does it in this one.
    """
    return DataLoader(
        WeightedPairs(pairs),  # type: ignore[arg-type]
        sampler=batches,
        batch_size=None,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


_MEANING = {
    "fingerprint": "the fingerprint of the tokenized pairs",
    "template": "the hash of the chat template",
    "global_batch": "the number of pairs per batch of all processes",
    "step": "the number of pairs per optimizer step",
    "tokens": "data.tokens_per_batch",
    "processes": "the number of processes",
    "accumulate": "trainer.accumulate_grad_batches",
    "seed": "data.seed",
}


def check_identity(saved: Mapping[str, Any], found: Mapping[str, Any], inside_epoch: bool) -> None:
    """Raise unless a saved position is one in the data that is there.

    Other pairs are never the same data; other batches of the same pairs matter in the middle of an epoch only. The
    chat template is named where it may be why the pairs are others.

    Args:
        saved: identity of the data that the position was saved in.
        found: identity of the data that is there.
        inside_epoch: the position is in the middle of an epoch.

    Raises:
        ValueError: it is not; names what differs, with both values.
    """
    changed = [key for key in _MEANING if saved.get(key) != found.get(key)]
    if "fingerprint" not in changed:
        changed = [key for key in changed if key != "template"] if inside_epoch else []
    if changed:
        each = "; ".join(f"{_MEANING[key]} was {saved.get(key)} and is {found.get(key)}" for key in changed)
        raise ValueError(
            f"the checkpoint's training data is not this one: {each}. "
            "Resume with the data and settings of the first run, or start anew from its weights"
        )
