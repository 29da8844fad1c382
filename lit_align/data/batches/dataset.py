"""The data set of batches: tokenized pairs with their values and, optionally, mismatched responses."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from lit_align.data.batches.sampler import Item, epoch_generator
from lit_align.data.prepared.arrow import PairValues
from lit_align.data.prepared.prepare import Split
from lit_align.data.prepared.store import PairStore
from lit_align.types import TokenizedPair, TokenizedResponse


@dataclass(frozen=True, eq=False)
class Mismatch:
    """The assignment of every pair to a partner whose responses are placed after its prompt.

    The assignment does not depend on batch, rank or epoch. A partner's responses are cut at their end so that prompt
    and response stay within the limit; a side that the partner lacks is absent here too.

    Args:
        partners: position of each pair's partner.
        max_length: maximum number of tokens of prompt and response together.
    """

    partners: NDArray[np.int64]
    max_length: int

    @classmethod
    def of(cls, store: PairStore, seed: int, max_length: int) -> Mismatch:
        """Assign partners: never the pair itself, and with another prompt if the split has enough of them.

        Every pair is the partner of exactly one other. The pairs are put in a random order in which those with the
        same prompt are adjacent, and each is assigned the pair that follows at a distance of the size of the largest
        such group.

        Raises:
            ValueError: there is only one pair.
        """
        count = len(store)
        if count < 2:
            raise ValueError(
                "the objective compares with the responses of other rows, but the split has only one; add rows"
            )
        _, prompt, size = np.unique(store.hashes(("prompt",)), return_inverse=True, return_counts=True)
        generator = epoch_generator(seed, 0)
        rank = torch.randperm(len(size), generator=generator).numpy()[prompt]
        order = np.lexsort((torch.randperm(count, generator=generator).numpy(), rank))
        partners = np.empty(count, dtype=np.int64)
        partners[order] = np.roll(order, -int(size.max()) if size.max() < count else -1)
        return cls(partners, max_length)

    def widths(self, store: PairStore) -> NDArray[np.int64]:
        """Return the number of tokens of each pair's longest sequence, its partner's responses included."""
        prompt, chosen, rejected, _ = store.part_lengths.T
        other = np.maximum(chosen, rejected)[self.partners]
        widths: NDArray[np.int64] = np.maximum(store.widths, np.minimum(prompt + other, self.max_length))
        return widths


@final
class PairDataset(Dataset[list[tuple[TokenizedPair, float]]]):
    """The pairs of a split, indexed by a whole batch of (position, weight) at once.

    Args:
        store: token ids of the pairs.
        values: numeric columns at the same positions; None if there are none.
        mismatch: adds the responses of each pair's partner; None for none.

    >>> one, two = TokenizedResponse([3, 4], [True] * 2), TokenizedResponse([5, 6, 7], [True] * 3)
    >>> store = PairStore.of([TokenizedPair([1, 2], one, two), TokenizedPair([8, 9], two, one)])
    >>> chosen, rejected = PairDataset(store, mismatch=Mismatch(np.array([1, 0]), max_length=4)).pair(0).mismatched
    >>> chosen.ids, chosen.truncated, rejected.ids, rejected.truncated
    ([5, 6], True, [3, 4], False)
    """

    def __init__(self, store: PairStore, values: PairValues | None = None, mismatch: Mismatch | None = None) -> None:
        self.store = store
        self.mismatch = mismatch
        self._latest: Tensor | None = None
        present = frozenset() if values is None else values.present
        self._weight = None if values is None else values.weight
        self._margin = np.nan_to_num(values.margin, nan=0.0) if values and "margin" in present else None
        known = values is not None and "preference_probability" in present
        self._probability = np.nan_to_num(values.preference_probability, nan=1.0) if values and known else None

    @cached_property
    def widths(self) -> list[int]:
        """Number of tokens of each pair's longest sequence."""
        widths = self.store.widths if self.mismatch is None else self.mismatch.widths(self.store)
        listed: list[int] = widths.tolist()
        return listed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, items: list[Item] | int) -> list[tuple[TokenizedPair, float]]:
        if not isinstance(items, list):
            raise TypeError(
                f"found {items!r}; expected the (position, weight) list of a batch. The data brings its own batches "
                "for every rank: set trainer.use_distributed_sampler to false"
            )
        worker = get_worker_info()
        if worker is not None and self._latest is not None:
            self._latest[worker.id] = torch.tensor([os.getpid(), len(items), items[0][0], items[-1][0]])
        return [(self.pair(index), weight) for index, weight in items]

    def follow_workers(self, count: int) -> None:
        """Keep, in memory that is shared with the workers of a loader, which batch each of them has begun last."""
        if count and (self._latest is None or len(self._latest) < count):
            self._latest = torch.zeros(count, 4, dtype=torch.int64).share_memory_()

    def latest_batch(self, process: int) -> tuple[int, int, int] | None:
        """Return size, first and last position of the batch that a worker has begun last; None for other processes."""
        rows: list[list[int]] = [] if self._latest is None else self._latest.tolist()
        return next(((size, first, last) for owner, size, first, last in rows if owner == process), None)

    def pair(self, index: int) -> TokenizedPair:
        """Return one pair with its values and mismatched responses."""
        own = self.store[index]
        return replace(
            own,
            weight=1.0 if self._weight is None else float(self._weight[index]),
            margin=None if self._margin is None else float(self._margin[index]),
            preference_probability=None if self._probability is None else float(self._probability[index]),
            mismatched=None if self.mismatch is None else self._mismatched(own, self.mismatch, index),
        )

    def _mismatched(
        self, own: TokenizedPair, mismatch: Mismatch, index: int
    ) -> tuple[TokenizedResponse, TokenizedResponse]:
        other = self.store[int(mismatch.partners[index])]
        room = mismatch.max_length - len(own.prompt)
        return _cut(other.chosen, room), _cut(other.rejected, room)


def _cut(response: TokenizedResponse, room: int) -> TokenizedResponse:
    if len(response.ids) <= room:
        return response
    return TokenizedResponse(response.ids[:room], response.scored[:room], truncated=True)


_LOST = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


def lost_batches(error: BaseException, datasets: Mapping[str, PairDataset], splits: Mapping[str, Split]) -> str:
    """Name the batches of worker processes that were ended from outside; empty if an error is of another kind."""
    named = _LOST.search(str(error))
    processes = [] if named is None else [int(number) for number in named[1].split(",")]
    batches = []
    for process in processes:
        for name, dataset in datasets.items():
            batch = dataset.latest_batch(process)
            if batch is not None:
                first, last = (splits[name].pairs[row].where for row in batch[1:])
                rows = f"the row {first}" if batch[0] == 1 else f"{batch[0]} rows, the first {first}, the last {last}"
                batches.append(f"its latest batch, of data.{name}, has {rows}")
    return "; ".join(batches)


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt to sample responses for: its ids as in training, and its text."""

    ids: Sequence[int]
    text: str


def sample_prompts(split: Split, count: int, decode: Callable[[Sequence[int]], str]) -> list[SamplePrompt]:
    """Return prompts at evenly spaced positions of a split."""
    total = len(split.pairs)
    rows = sorted({math.floor(number * total / count) for number in range(count)})
    prompts = [(split.store[row].prompt, split.pairs[row].prompt) for row in rows]
    return [SamplePrompt(ids, text if isinstance(text, str) else decode(ids)) for ids, text in prompts]
