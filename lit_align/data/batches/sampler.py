"""A sampler decides which pairs stand in which batch, as a pure function of (seed, epoch, rank, world)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TypeAlias, final

import torch
from torch.utils.data import Sampler

Item: TypeAlias = tuple[int, float]
"""Position of a pair, and its weight: 1, or 0 for a copy that only fills up a rank's batch."""

POOL = 50


@dataclass(frozen=True)
class Share:
    """Which part of each global batch this process works on.

    Args:
        batch_size: pairs per process and batch.
        rank: number of this process.
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
        """This rank's rows of a global batch; a rank without any gets one copy of weight 0.

        >>> Share(batch_size=2, rank=1, world=2).of([7, 8, 9])
        [(8, 1.0)]
        >>> Share(batch_size=2, rank=1, world=2).of([7])
        [(7, 0.0)]
        """
        mine = [(row, 1.0) for row in rows[self.rank :: self.world]]
        return mine or [(rows[0], 0.0)]


class PairBatches(Sampler[list[Item]]):
    """Batches of an epoch. Every rank gets the same number of them, and it is the same in every epoch.

    Args:
        share: rank and world.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.epoch = 0
        self.skip = 0
        """Batches to leave out at the start of the next pass, when a run is resumed."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of batches."""

    @abstractmethod
    def plan(self) -> list[list[int]]:
        """The global batches of this epoch, those of all ranks together."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, int]:
        """What a position in the middle of an epoch is a position in, beside the pairs and the seed."""

    def __iter__(self) -> Iterator[list[Item]]:
        """A generator on purpose: a loader with workers asks for two iterators and uses the second one only."""
        skip, self.skip = self.skip, 0
        yield from (self.share.of(rows) for rows in self.plan()[skip:])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; Lightning calls it."""
        self.epoch = epoch


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """The random numbers of an epoch's order; the global generator is left alone.

    Args:
        seed: of the run.
        epoch: number of the pass.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)


def _cut(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


@final
class BucketedBatches(PairBatches):
    """Shuffled batches of pairs that are about equally long, for training.

    The pairs are shuffled, sorted by length within pools of 50 optimizer steps, cut into steps, and these are
    shuffled: little padding, and still another order in every epoch. An optimizer step holds the same pairs for the
    same ``batch_size × world × accumulate``, however that is split. The pairs that do not fill a step, any of them,
    make a short one at the end of the epoch.

    Args:
        widths: what each pair costs in a batch, in tokens.
        share: batch size, rank and world.
        seed: the same seed gives the same batches.
        pool: optimizer steps per pool.
    """

    def __init__(self, widths: Sequence[int], share: Share, seed: int, pool: int = POOL) -> None:
        super().__init__(share)
        self.widths = widths
        self.seed = seed
        self.pool = pool

    def __len__(self) -> int:
        return -(-len(self.widths) // self.share.global_size)

    @property
    def identity(self) -> Mapping[str, int]:
        """See the base class."""
        return {"global_batch": self.share.global_size, "step": self.share.step_size}

    def plan(self) -> list[list[int]]:
        """See the base class; a global batch is the same for the same ``batch_size × world``."""
        generator = generator_of(self.seed, self.epoch)
        order = torch.randperm(len(self.widths), generator=generator).tolist()
        size, full = self.share.step_size, len(order) - len(order) % self.share.step_size
        pools = _cut(order[:full], self.pool * size)
        steps = [step for pool in pools for step in _cut(self._by_width(pool), size)]
        shuffled = [steps[place] for place in torch.randperm(len(steps), generator=generator).tolist()]
        shuffled.append(self._by_width(order[full:]))
        return [batch for step in shuffled for batch in _cut(step, self.share.global_size)]

    def _by_width(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=self.widths.__getitem__)


@final
class SequentialBatches(PairBatches):
    """Batches in the order of the data, every pair once, for evaluation.

    Args:
        count: number of pairs.
        share: batch size, rank and world.
    """

    def __init__(self, count: int, share: Share) -> None:
        super().__init__(share)
        self.count = count

    def __len__(self) -> int:
        return -(-self.count // self.share.global_size)

    @property
    def identity(self) -> Mapping[str, int]:
        """See the base class."""
        return {"global_batch": self.share.global_size}

    def plan(self) -> list[list[int]]:
        """See the base class; every epoch is the same."""
        return _cut(range(self.count), self.share.global_size)


def rows_of_steps(batches: PairBatches, limit: int | None, steps: int) -> list[int]:
    """Positions of the pairs that so many optimizer steps see, of all processes together.

    Args:
        batches: a plan of training.
        limit: batches of an epoch that are used; None for all.
        steps: optimizer steps from the start of the first epoch.

    >>> rows_of_steps(SequentialBatches(5, Share(batch_size=2)), None, steps=2)
    [0, 1, 2, 3]
    """
    found: set[int] = set()
    accumulate = batches.share.accumulate
    for epoch in count():
        batches.set_epoch(epoch)
        plan = batches.plan()
        used = plan[:limit][: steps * accumulate]
        found.update(row for rows in used for row in rows)
        steps -= -(-len(used) // accumulate)
        if not used or steps <= 0 or len(found) == sum(map(len, plan)):
            break
    return sorted(found)


@final
class ListedBatches(PairBatches):
    """The rows that somebody asks for, in batches of another plan.

    Args:
        rows: positions in the data.
        batches: a plan over as many places as there are rows.

    >>> list(ListedBatches([7, 4, 9], SequentialBatches(3, Share(batch_size=2))))
    [[(7, 1.0), (4, 1.0)], [(9, 1.0)]]
    """

    def __init__(self, rows: Sequence[int], batches: PairBatches) -> None:
        super().__init__(batches.share)
        self.rows = rows
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def identity(self) -> Mapping[str, int]:
        """See the base class."""
        return self.batches.identity

    def plan(self) -> list[list[int]]:
        """See the base class; every epoch is the same."""
        return [[self.rows[place] for place in places] for places in self.batches.plan()]
