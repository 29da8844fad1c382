"""Token batches hold as many pairs as fit into a number of tokens, padding included."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.batches.sampler import BucketedBatches, PairBatches, SequentialBatches, Share, generator_of
from lit_align.errors import check_range

FINENESS = 16
"""Widths within a sixteenth of one another fall into one class."""


@final
class TokenBatches(PairBatches):
    """Shuffled batches of pairs that are about equally long, each within a number of tokens, for training.

    The pairs fall into classes of about equal width. In every epoch the pairs of a class are shuffled, and the
    classes, shortest first, are cut into batches; what does not fill a batch goes up into the next class. The cuts
    depend on the number of pairs in each class alone: their number is the same in every epoch and for every rank,
    while the pairs change. The batches are shuffled in the end.

    The loss is the mean over the pairs of an optimizer step, however many these are: with a token budget only what
    shares a step changes. A step of short pairs holds more of them, so each of them counts less than a long one.

    Args:
        widths: what each pair costs in a batch, in tokens of one side.
        tokens: of both sides, padding included, per process and batch.
        share: rank, world and accumulation; how many pairs make a batch follows from ``tokens``.
        seed: the same seed gives the same batches.

    Raises:
        ValueError: a pair alone is longer than a batch.

    >>> TokenBatches([3, 9, 3, 4], tokens=18, share=Share(1), seed=0).sizes
    [2, 1, 1]
    """

    def __init__(self, widths: Sequence[int], tokens: int, share: Share, seed: int) -> None:
        super().__init__(share)
        self.tokens = tokens
        self.seed = seed
        self._classes = _classes(np.array(widths, dtype=np.int64))
        self.sizes = self._cuts(np.array(widths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def identity(self) -> Mapping[str, int]:
        """See the base class."""
        return {"tokens": self.tokens, "processes": self.share.world, "accumulate": self.share.accumulate}

    def plan(self) -> list[list[int]]:
        """See the base class."""
        generator = generator_of(self.seed, self.epoch)
        shuffled = torch.randperm(len(self._classes), generator=generator).numpy()
        order = shuffled[np.argsort(self._classes[shuffled], kind="stable")]
        batches = [rows.tolist() for rows in np.split(order, np.cumsum(self.sizes)[:-1])] if self.sizes else []
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def _cuts(self, widths: NDArray[np.int64]) -> list[int]:
        """Pairs in each global batch, the classes in order; the last class is shared out evenly."""
        sizes: list[int] = []
        left = 0
        *lower, last = np.unique(self._classes).tolist() or [0]
        for number in lower:
            room, members = self._room(widths, number)
            full, left = divmod(left + members, room)
            sizes += [room] * full
        room, members = self._room(widths, last)
        return sizes + _even(left + members, room)

    def _room(self, widths: NDArray[np.int64], number: int) -> tuple[int, int]:
        """Pairs of a class that fit into one global batch, and how many pairs the class has."""
        members = widths[self._classes == number]
        widest = int(members.max(initial=1))
        return self.share.world * self._pairs_per_batch(widest), len(members)

    def _pairs_per_batch(self, width: int) -> int:
        pairs = self.tokens // (2 * width)
        if pairs < 1:
            raise ValueError(
                f"data.tokens_per_batch is {self.tokens}, but the two sides of the longest pair take 2 × {width} "
                f"tokens; expected {2 * width} or more, or a smaller data.max_length"
            )
        return pairs


def _classes(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the class of each width; widths of a class differ by less than a sixteenth.

    >>> _classes(np.array([16, 17, 32, 33, 34, 64])).tolist()
    [16, 17, 32, 32, 33, 48]
    """
    bits = np.frexp(widths.astype(np.float64))[1].astype(np.int64)
    doublings = np.maximum(0, bits - FINENESS.bit_length())
    classes: NDArray[np.int64] = (widths >> doublings) + FINENESS * doublings
    return classes


def _even(count: int, room: int) -> list[int]:
    """As few batches as possible, about equally full.

    >>> _even(7, room=3)
    [3, 2, 2]
    """
    batches = -(-count // room)
    return [count // batches + (place < count % batches) for place in range(batches)]


PAIRS = 8


class Budget(ABC):
    """How much goes into a batch of one process."""

    @abstractmethod
    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """The shuffled batches of the training pairs.

        Args:
            widths: what each pair costs, in tokens of one side.
            share: rank, world and accumulation.
            seed: of the order.
        """

    @abstractmethod
    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """The batches of an evaluation, in the order of the data."""

    @abstractmethod
    def step(self, share: Share) -> int:
        """Pairs of an optimizer step; 0 where that is another number in every step."""


@final
@dataclass(frozen=True)
class PairBudget(Budget):
    """So many pairs.

    Args:
        pairs: in a training batch.
        evaluated: in a batch of evaluation.
    """

    pairs: int
    evaluated: int

    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """See the base class."""
        return BucketedBatches(widths, replace(share, batch_size=self.pairs), seed)

    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """See the base class."""
        return SequentialBatches(len(widths), replace(share, batch_size=self.evaluated))

    def step(self, share: Share) -> int:
        """See the base class."""
        return replace(share, batch_size=self.pairs).step_size


@final
@dataclass(frozen=True)
class TokenBudget(Budget):
    """So many tokens of both sides, padding included.

    Args:
        tokens: in a batch.
        evaluated: pairs in a batch of evaluation; None for as many as fit whatever their lengths.
    """

    tokens: int
    evaluated: int | None

    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """See the base class."""
        return TokenBatches(widths, self.tokens, share, seed)

    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """See the base class."""
        fitting = max(1, self.tokens // (2 * max(widths, default=1)))
        return SequentialBatches(len(widths), replace(share, batch_size=self.evaluated or fitting))

    def step(self, share: Share) -> int:
        """See the base class."""
        return 0


def budget_of(batch_size: int | None, tokens_per_batch: int | None, eval_batch_size: int | None) -> Budget:
    """The budget that the settings ask for.

    Args:
        batch_size: pairs per process and batch; None for 8, unless there is a number of tokens.
        tokens_per_batch: tokens per process and batch.
        eval_batch_size: pairs per process and batch of evaluation.

    Raises:
        ValueError: a number is out of its range, or both pairs and tokens are set.

    >>> budget_of(None, None, None)
    PairBudget(pairs=8, evaluated=8)
    """
    check_range("data.batch_size", batch_size, 1)
    check_range("data.tokens_per_batch", tokens_per_batch, 2)
    check_range("data.eval_batch_size", eval_batch_size, 1)
    if tokens_per_batch is None:
        return PairBudget(batch_size or PAIRS, eval_batch_size or batch_size or PAIRS)
    if batch_size is not None:
        raise ValueError("data.batch_size and data.tokens_per_batch are both set; expected one of them")
    return TokenBudget(tokens_per_batch, eval_batch_size)
