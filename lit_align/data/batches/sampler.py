"""Samplers: which pairs form which batch, as a pure function of seed, epoch, rank and world size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler
from typing_extensions import override

Item: TypeAlias = tuple[int, float]
"""Position of a pair, and its weight: 1, or 0 for a copy that only fills the batch of a rank."""

_POOL = 50
_CLASSES_PER_DOUBLING = 16


@dataclass(frozen=True)
class Share:
    """The part of each global batch that this process works on.

    Args:
        batch_size: pairs per process and batch.
        rank: rank of this process.
        world: number of processes.
        accumulate: batches per optimizer step.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def global_size(self) -> int:
        """Pairs of all processes in one batch."""
        return self.batch_size * self.world

    @property
    def step_size(self) -> int:
        """Pairs of all processes in one optimizer step."""
        return self.global_size * self.accumulate

    def of(self, rows: Sequence[int]) -> list[Item]:
        """Return this rank's part of a global batch; a rank without any row gets one copy of weight 0.

        >>> Share(batch_size=2, rank=1, world=2).of([7, 8, 9])
        [(8, 1.0)]
        >>> Share(batch_size=2, rank=1, world=2).of([7])
        [(7, 0.0)]
        """
        own = [(row, 1.0) for row in rows[self.rank :: self.world]]
        return own or [(rows[0], 0.0)]


class PairBatches(Sampler[list[Item]]):
    """Base class of batch samplers. The number of batches is the same for every rank and every epoch.

    Args:
        share: rank and world size.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.epoch = 0
        self.skip = 0
        """Batches to leave out at the start of the next pass, when a run is resumed."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches."""

    @abstractmethod
    def plan(self) -> list[list[int]]:
        """Return the global batches of this epoch, each with the rows of all ranks."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, int]:
        """The settings that must not change when a run is resumed in the middle of an epoch."""

    @override
    def __iter__(self) -> Iterator[list[Item]]:
        # A generator, because a loader with workers creates two iterators and consumes only the second one.
        skip, self.skip = self.skip, 0
        yield from (self.share.of(rows) for rows in self.plan()[skip:])

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; called by Lightning."""
        self.epoch = epoch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the random generator for the order of an epoch, independent of the global generator."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def _chunks(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


@final
class BucketedBatches(PairBatches):
    """Shuffled training batches of a fixed number of pairs that are about equally long.

    The pairs are shuffled, sorted by length within pools of 50 optimizer steps, and cut into steps, which are shuffled
    again: little padding, and a different order in every epoch. An optimizer step holds the same pairs for the same
    ``batch_size × world × accumulate``, however that product is split. Pairs that do not fill a step form a short step
    at the end of the epoch.

    Args:
        widths: length of each pair in a batch, in tokens.
        share: batch size, rank and world size.
        seed: seed of the order.
        pool: optimizer steps per pool.
    """

    def __init__(self, widths: Sequence[int], share: Share, seed: int, pool: int = _POOL) -> None:
        super().__init__(share)
        self.widths = widths
        self.seed = seed
        self.pool = pool

    @override
    def __len__(self) -> int:
        return -(-len(self.widths) // self.share.global_size)

    @property
    @override
    def identity(self) -> Mapping[str, int]:
        return {"global_batch": self.share.global_size, "step": self.share.step_size}

    @override
    def plan(self) -> list[list[int]]:
        generator = epoch_generator(self.seed, self.epoch)
        order = torch.randperm(len(self.widths), generator=generator).tolist()
        size, full = self.share.step_size, len(order) - len(order) % self.share.step_size
        pools = _chunks(order[:full], self.pool * size)
        steps = [step for pool in pools for step in _chunks(self._by_width(pool), size)]
        shuffled = [steps[index] for index in torch.randperm(len(steps), generator=generator).tolist()]
        shuffled.append(self._by_width(order[full:]))
        return [batch for step in shuffled for batch in _chunks(step, self.share.global_size)]

    def _by_width(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=self.widths.__getitem__)


@final
class TokenBatches(PairBatches):
    """Shuffled training batches of pairs that are about equally long, each within a number of tokens.

    The pairs are grouped into classes of about equal length. In every epoch the pairs of a class are shuffled, and the
    classes, from short to long, are cut into batches; pairs that do not fill a batch move up to the next class. The
    cuts depend only on the sizes of the classes, so that the number of batches is the same in every epoch and for
    every rank. Finally the batches are shuffled.

    The loss is the mean over the pairs of an optimizer step, however many there are: a step of short pairs holds more
    of them, so each of these counts less than a long one.

    Args:
        widths: length of each pair in a batch, in tokens of one side.
        tokens: tokens of both sides with padding, per process and batch.
        share: rank, world size and accumulation; the number of pairs follows from ``tokens``.
        seed: seed of the order.

    Raises:
        ValueError: a single pair is longer than a batch.

    >>> TokenBatches([3, 9, 3, 4], tokens=18, share=Share(1), seed=0).sizes
    [2, 1, 1]
    """

    def __init__(self, widths: Sequence[int], tokens: int, share: Share, seed: int) -> None:
        super().__init__(share)
        self.tokens = tokens
        self.seed = seed
        self._classes = _width_classes(np.array(widths, dtype=np.int64))
        self.sizes = self._batch_sizes(np.array(widths, dtype=np.int64))

    @override
    def __len__(self) -> int:
        return len(self.sizes)

    @property
    @override
    def identity(self) -> Mapping[str, int]:
        return {"tokens": self.tokens, "processes": self.share.world, "accumulate": self.share.accumulate}

    @override
    def plan(self) -> list[list[int]]:
        generator = epoch_generator(self.seed, self.epoch)
        shuffled = torch.randperm(len(self._classes), generator=generator).numpy()
        order = shuffled[np.argsort(self._classes[shuffled], kind="stable")]
        batches = [rows.tolist() for rows in np.split(order, np.cumsum(self.sizes)[:-1])] if self.sizes else []
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

    def _batch_sizes(self, widths: NDArray[np.int64]) -> list[int]:
        """Return the pairs of each global batch, class by class; the last class is divided evenly."""
        sizes: list[int] = []
        left = 0
        *lower, last = np.unique(self._classes).tolist() or [0]
        for number in lower:
            capacity, members = self._capacity(widths, number)
            full, left = divmod(left + members, capacity)
            sizes += [capacity] * full
        capacity, members = self._capacity(widths, last)
        return sizes + _even_sizes(left + members, capacity)

    def _capacity(self, widths: NDArray[np.int64], number: int) -> tuple[int, int]:
        """Return how many pairs of a class fit into one global batch, and how many pairs the class has."""
        members = widths[self._classes == number]
        width = int(members.max(initial=1))
        pairs = self.tokens // (2 * width)
        if pairs < 1:
            raise ValueError(
                f"data.tokens_per_batch is {self.tokens}, but the two sides of the longest pair take 2 × {width} "
                f"tokens; expected {2 * width} or more, or a smaller data.max_length"
            )
        return self.share.world * pairs, len(members)


def _width_classes(widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each width; widths of a class differ by less than a sixteenth.

    >>> _width_classes(np.array([16, 17, 32, 33, 34, 64])).tolist()
    [16, 17, 32, 32, 33, 48]
    """
    bits = np.frexp(widths.astype(np.float64))[1].astype(np.int64)
    doublings = np.maximum(0, bits - _CLASSES_PER_DOUBLING.bit_length())
    classes: NDArray[np.int64] = (widths >> doublings) + _CLASSES_PER_DOUBLING * doublings
    return classes


def _even_sizes(total: int, capacity: int) -> list[int]:
    """Divide pairs into as few batches as possible, of about equal size.

    >>> _even_sizes(7, capacity=3)
    [3, 2, 2]
    """
    batches = -(-total // capacity)
    return [total // batches + (index < total % batches) for index in range(batches)]


@final
class SequentialBatches(PairBatches):
    """Batches of rows in the given order, each row once, for evaluation.

    Args:
        rows: positions of the pairs.
        share: batch size, rank and world size.

    >>> list(SequentialBatches([7, 4, 9], Share(batch_size=2)))
    [[(7, 1.0), (4, 1.0)], [(9, 1.0)]]
    """

    def __init__(self, rows: Sequence[int], share: Share) -> None:
        super().__init__(share)
        self.rows = rows

    @override
    def __len__(self) -> int:
        return -(-len(self.rows) // self.share.global_size)

    @property
    @override
    def identity(self) -> Mapping[str, int]:
        return {"global_batch": self.share.global_size}

    @override
    def plan(self) -> list[list[int]]:
        return _chunks(self.rows, self.share.global_size)


def rows_of_steps(batches: PairBatches, limit: int | None, steps: int) -> list[int]:
    """Return the sorted positions of the pairs that the first optimizer steps use, over all processes.

    Args:
        batches: sampler of the training batches.
        limit: number of batches of an epoch that are used; None for all.
        steps: number of optimizer steps from the start of the first epoch.

    >>> rows_of_steps(SequentialBatches(range(5), Share(batch_size=2)), None, steps=2)
    [0, 1, 2, 3]
    """
    seen: set[int] = set()
    accumulate = batches.share.accumulate
    for epoch in count():
        batches.set_epoch(epoch)
        plan = batches.plan()
        used = plan[:limit][: steps * accumulate]
        seen.update(row for rows in used for row in rows)
        steps -= -(-len(used) // accumulate)
        if not used or steps <= 0 or len(seen) == sum(map(len, plan)):
            break
    return sorted(seen)
