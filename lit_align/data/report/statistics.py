"""A statistic says in a few exact numbers how many lengths are distributed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer[Any]]

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_BINS = 28
_MOST_BINS = 400
_Z = 1.959963984540054  # the standard normal's 97.5 % quantile


@final
@dataclass(frozen=True)
class Histogram:
    """Counts of whole numbers in bins of equal width; bin k holds low + k·width ≤ value < low + (k + 1)·width.

    Args:
        low: where the first bin begins, a multiple of ``width``: histograms of one width lie on one grid.
        width: of a bin: 1, 2 or 5 times a power of ten.
        counts: values in each bin.

    >>> Histogram.of(np.array([3, 4, 7]), width=5)
    Histogram(low=0, width=5, counts=(2, 1))
    """

    low: int
    width: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Integers, width: int) -> Histogram:
        """Count values in bins of a width."""
        if not len(values):
            return cls(0, width, ())
        bins = np.floor_divide(values, width)
        first = int(bins.min())
        return cls(first * width, width, tuple(np.bincount(bins - first).tolist()))

    @property
    def edges(self) -> list[int]:
        """Where the bins begin, and where the last one ends.

        >>> Histogram(-5, 5, (2, 1)).edges
        [-5, 0, 5]
        """
        return [self.low + self.width * k for k in range(len(self.counts) + 1)]


@final
@dataclass(frozen=True)
class Distribution:
    """Some whole numbers in short; without any, every number is 0.

    Args:
        count: how many there are.
        mean: mean.
        std: standard deviation (of the population).
        percentiles: percentile → value, between two values linearly.
        histogram: how many lie where.
    """

    count: int
    mean: float
    std: float
    percentiles: Mapping[int, float]
    histogram: Histogram

    @classmethod
    def of(cls, values: Integers, width: int) -> Distribution:
        """The distribution of values, its histogram in bins of a width."""
        histogram = Histogram.of(values, width)
        if not len(values):
            return cls(0, 0.0, 0.0, dict.fromkeys(PERCENTILES, 0.0), histogram)
        places = zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True)
        return cls(len(values), float(values.mean()), float(values.std()), dict(places), histogram)


def bin_width(values: Integers) -> int:
    """A round width that shows where most values lie: about 28 bins from the 1st to the 99th percentile.

    >>> bin_width(np.arange(100)), bin_width(np.arange(1000)), bin_width(np.array([7]))
    (5, 50, 1)
    """
    if not len(values):
        return 1
    low, high = np.percentile(values, (1, 99))
    least = max((high - low) / _BINS, (int(values.max()) - int(values.min())) / _MOST_BINS, 1)
    power = 10 ** math.floor(math.log10(least))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= least))


@final
@dataclass(frozen=True)
class Interval:
    """A share and its 95 % interval."""

    share: float
    low: float
    high: float


def wilson(wins: float, count: int) -> Interval:
    """The share of wins and Wilson's score interval, which stays inside 0 and 1 also for few pairs.

    The interval's ends are the shares p that a test at 5 % would not reject: |wins / n − p| = z √(p (1 − p) / n).
    Ties may count one half. Without any trial nothing is known.

    Args:
        wins: how many were won.
        count: out of how many, n.

    >>> interval = wilson(8, 10)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.4902, 0.9433)
    >>> wilson(0, 0)
    Interval(share=0.5, low=0.0, high=1.0)
    """
    if not count:
        return Interval(0.5, 0.0, 1.0)
    share = wins / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def pearson(one: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Pearson's correlation; None where there is none: fewer than two values, or one side always the same.

    >>> pearson(np.array([1, 2, 3]), np.array([2.0, 4.0, 6.0]))
    1.0
    """
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    a, b = _centred(one), _centred(other)
    found = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return min(1.0, max(-1.0, found))


def _centred(values: NDArray[Any]) -> NDArray[np.float64]:
    """Less their mean, and scaled so that nothing overflows or vanishes."""
    scaled: NDArray[np.float64] = values / float(np.abs(values).max())
    centred: NDArray[np.float64] = scaled - scaled.mean()
    return centred / float(np.abs(centred).max())
