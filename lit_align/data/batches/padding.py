"""Fullness says how full the batches of an epoch are: pairs, padding, and copies that only keep a rank busy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.data.batches.sampler import PairBatches


@dataclass(frozen=True)
class Fullness:
    """What the batches of an epoch hold.

    Args:
        batches: batches per process.
        fewest: pairs in the smallest batch of all processes together.
        most: pairs in the largest one.
        padding: share of the positions of all batches that hold no token.
        copies: copies of weight 0, for processes that a batch has no pair for.

    >>> Fullness(batches=10, fewest=4, most=8, padding=0.031, copies=0).line()
    '10 of 4 to 8 pairs; 3.1 % padding'
    """

    batches: int
    fewest: int
    most: int
    padding: float
    copies: int

    def line(self) -> str:
        """In a line."""
        pairs = f"{self.most}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        idle = f"; {self.copies} copies of weight 0 keep all processes busy" if self.copies else ""
        return f"{self.batches:,} of {pairs} pairs; {self.padding:.1%}".replace("%", " %") + f" padding{idle}"

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def fullness_of(plan: PairBatches, widths: Sequence[int], tokens: NDArray[np.int64]) -> Fullness:
    """The fullness of a plan's epoch, over all ranks; where there is a prompted pair, of the plain one alone.

    Args:
        plan: the batches.
        widths: tokens of the longer side of each pair.
        tokens: tokens of both sides of each pair together.
    """
    batches, world = plan.plan(), plan.share.world
    ranks = [rows[rank::world] or rows[:1] for rows in batches for rank in range(world)]
    positions = sum(2 * len(rows) * max(widths[row] for row in rows) for rows in ranks)
    sizes = [len(rows) for rows in batches]
    return Fullness(
        batches=len(batches),
        fewest=min(sizes, default=0),
        most=max(sizes, default=0),
        padding=1 - int(tokens.sum()) / positions if positions else 0.0,
        copies=sum(max(0, world - size) for size in sizes),
    )
