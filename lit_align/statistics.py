"""Exact summary statistics of lengths: histograms, percentiles, intervals, correlation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer[Any]]

REPORTED_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_BINS = 28
_MAX_BINS = 400
Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution, for intervals of 95 %."""


@final
@dataclass(frozen=True)
class Histogram:
    """Counts of integers in bins of equal width; bin k holds low + k·width ≤ value < low + (k + 1)·width.

    Args:
        low: start of the first bin, a multiple of ``width``, so that histograms of one width share a grid.
        width: width of a bin: 1, 2 or 5 times a power of ten.
        counts: number of values in each bin.

    >>> Histogram.of(np.array([3, 4, 7]), width=5)
    Histogram(low=0, width=5, counts=(2, 1))
    """

    low: int
    width: int
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Integers, width: int) -> Histogram:
        """Count values in bins of the given width."""
        if not len(values):
            return cls(0, width, ())
        bins = np.floor_divide(values, width)
        first = int(bins.min())
        return cls(first * width, width, tuple(np.bincount(bins - first).tolist()))

    @property
    def edges(self) -> list[int]:
        """Start of each bin, and the end of the last one.

        >>> Histogram(-5, 5, (2, 1)).edges
        [-5, 0, 5]
        """
        return [self.low + self.width * k for k in range(len(self.counts) + 1)]


@final
@dataclass(frozen=True)
class Distribution:
    """Summary of integers; every number is 0 if there are none.

    Args:
        count: number of values.
        mean: mean.
        std: population standard deviation.
        percentiles: percentile → value, with linear interpolation.
        histogram: histogram.
    """

    count: int
    mean: float
    std: float
    percentiles: Mapping[int, float]
    histogram: Histogram

    @classmethod
    def of(cls, values: Integers, width: int) -> Distribution:
        """Summarize values, with a histogram in bins of the given width."""
        histogram = Histogram.of(values, width)
        if not len(values):
            return cls(0, 0.0, 0.0, dict.fromkeys(REPORTED_PERCENTILES, 0.0), histogram)
        percentiles = dict(
            zip(REPORTED_PERCENTILES, np.percentile(values, REPORTED_PERCENTILES).tolist(), strict=True)
        )
        return cls(len(values), float(values.mean()), float(values.std()), percentiles, histogram)


def bin_width(values: Integers) -> int:
    """Return a round bin width that gives about 28 bins from the 1st to the 99th percentile.

    >>> bin_width(np.arange(100)), bin_width(np.arange(1000)), bin_width(np.array([7]))
    (5, 50, 1)
    """
    if not len(values):
        return 1
    low, high = np.percentile(values, (1, 99))
    least = max((high - low) / _BINS, (int(values.max()) - int(values.min())) / _MAX_BINS, 1)
    power = 10 ** math.floor(math.log10(least))
    return int(next(step * power for step in (1, 2, 5, 10) if step * power >= least))


@final
@dataclass(frozen=True)
class Interval:
    """A share and its 95 % confidence interval."""

    share: float
    low: float
    high: float


def wilson(wins: float, count: int) -> Interval:
    """Return the share of wins and Wilson's score interval, which stays within 0 and 1 even for few trials.

    Its ends are the shares p at which a test at 5 % just does not reject: |wins / n − p| = z √(p (1 − p) / n).
    Ties may count one half. Without trials the interval is 0 to 1.

    Args:
        wins: number of wins.
        count: number of trials, n.

    >>> interval = wilson(8, 10)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.4902, 0.9433)
    >>> wilson(0, 0)
    Interval(share=0.5, low=0.0, high=1.0)
    """
    if not count:
        return Interval(0.5, 0.0, 1.0)
    share = wins / count
    middle = (share + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = Z_95 / (1 + Z_95**2 / count) * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def pearson_correlation(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return the Pearson correlation; None for fewer than two values, or if one side is constant.

    >>> round(pearson_correlation(np.array([1, 2, 3]), np.array([2.0, 4.0, 6.0])), 4)
    1.0
    """
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    a, b = (values / float(np.abs(values).max()) for values in (first, second))  # so that no square overflows
    return float(np.corrcoef(a, b)[0, 1])
