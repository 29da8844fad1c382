"""Intervals and comparisons over seeds or prompts, by Student's t, corrected for their number by Holm's method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from lit_align.comparison.numbers import t_interval
from lit_align.evaluation.record import MetricEstimate

Name = TypeVar("Name")


@dataclass(frozen=True)
class Comparison:
    """A paired difference over seeds.

    Args:
        difference: mean and 95 % interval.
        p: of a two-sided t test that it is 0.
        holm: p, corrected for all comparisons of the table by Holm's method; None for a single value.
    """

    difference: MetricEstimate
    p: float
    holm: float | None

    @property
    def corrected(self) -> str:
        """The corrected p as text; empty for a single value."""
        return "" if self.holm is None else f"{self.holm:.2f}" if self.holm >= 0.01 else "< 0.01"

    def __str__(self) -> str:
        """Return the difference with its interval, in bold where it holds after the correction."""
        text = with_interval(self.difference)
        return f"**{text}**" if self.holm is not None and self.holm < 0.05 else text


def compare(differences: Mapping[Name, Sequence[float]]) -> dict[Name, Comparison]:
    """Test paired differences of a table; those with a single value are not tested.

    Args:
        differences: name → the difference of each seed, or of each prompt.

    >>> [round(each.holm, 3) for each in compare({"a": [1.0, 1.1, 0.9], "b": [1.0, -1.0, 0.3]}).values()]
    [0.007, 0.88]
    """
    p = {name: t_test(values) for name, values in differences.items()}
    corrected = holm({name: value for name, value in p.items() if len(differences[name]) > 1})
    return {
        name: Comparison(t_interval(list(differences[name])), p[name], corrected.get(name)) for name in differences
    }


def t_test(values: Sequence[float]) -> float:
    """Return the p value of a two-sided t test that the mean is 0; 1 for a single value."""
    count, mean = len(values), math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, count - 1) / count)
    if count < 2 or spread == 0:
        return 0.0 if count > 1 and mean else 1.0
    return 2 * float(stdtr(count - 1, -abs(mean) / spread))


def clustered(values: ArrayLike, clusters: ArrayLike) -> tuple[MetricEstimate, float]:
    r"""Return a mean over pairs with the interval that pairs on the same prompt allow, and the p value that it is 0.

    The variance is $\frac{G}{G-1} \sum_g (\sum_{i \in g} (x_i - \bar x))^2 / n^2$ with G clusters, and the interval is
    Student's with G - 1 degrees of freedom; where every value is a cluster, it is that of `t_interval`.

    Args:
        values: of the pairs.
        clusters: number of each pair's prompt.

    >>> single = clustered([1.0, 2.0, 3.0], [0, 1, 2])[0]  # as t_interval has it
    >>> round(single.low, 3), round(single.high, 3)
    (-0.484, 4.484)
    >>> twice = clustered([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], [0, 0, 1, 1, 2, 2])[0]  # the same three prompts
    >>> round(twice.low, 3), round(twice.high, 3)
    (-0.484, 4.484)
    """
    numbers = np.asarray(values, dtype=float)
    _, places = np.unique(np.asarray(clusters), return_inverse=True)
    count, average = int(places.max()) + 1, float(numbers.mean())
    if count < 2:
        return MetricEstimate(average, n=len(numbers)), 1.0
    rest = np.bincount(places, numbers - average)
    error = math.sqrt(count / (count - 1) * float(rest @ rest)) / len(numbers)
    half = float(stdtrit(count - 1, 0.975)) * error
    p = 2 * float(stdtr(count - 1, -abs(average) / error)) if error else float(average == 0)
    return MetricEstimate(average, average - half, average + half, len(numbers)), p


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """Return p values corrected by Holm's method: the k-th smallest of m times m + 1 - k, never decreasing.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, p[name] * (len(p) - rank)))
        corrected[name] = largest
    return corrected


def with_interval(estimate: MetricEstimate, digits: int = 2) -> str:
    """Return a mean and half of its interval's width."""
    half = "" if estimate.high is None else f" ± {estimate.high - estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f}{half}"
