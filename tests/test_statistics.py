from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lit_align.statistics import (
    REPORTED_PERCENTILES,
    Distribution,
    Histogram,
    bin_width,
    pearson_correlation,
    wilson,
)

whole = st.integers(-5000, 5000)
values = st.lists(whole, min_size=1, max_size=60)
widths = st.sampled_from([1, 2, 5, 10, 20, 50, 1000])


def array(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def percentile(numbers: list[int], p: int) -> float:
    """Percentiles interpolate linearly between neighbours, computed in exact arithmetic."""
    ordered = sorted(numbers)
    place = Fraction(p, 100) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


@given(values, widths)
def test_a_distribution_by_plain_loops(numbers: list[int], width: int) -> None:
    found = Distribution.of(array(numbers), width)
    mean = Fraction(sum(numbers), len(numbers))
    assert found.count == len(numbers)
    assert found.mean == pytest.approx(float(mean))
    assert found.std == pytest.approx(math.sqrt(sum((n - mean) ** 2 for n in numbers) / len(numbers)), abs=1e-9)
    for p in REPORTED_PERCENTILES:
        assert found.percentiles[p] == pytest.approx(percentile(numbers, p))


@given(values, widths)
def test_a_histogram_counts_every_value_once(numbers: list[int], width: int) -> None:
    found = Histogram.of(array(numbers), width)
    bins = zip(found.edges[:-1], found.edges[1:], found.counts, strict=True)
    assert all(count == sum(low <= n < high for n in numbers) for low, high, count in bins)
    assert sum(found.counts) == len(numbers)
    assert found.low % width == 0
    assert found.counts[0]
    assert found.counts[-1]


@given(values)
@example([0] * 50 + [10**9])
@example([7])
def test_a_width_is_round_and_never_asks_for_too_many_bins(numbers: list[int]) -> None:
    width = bin_width(array(numbers))
    assert str(width).rstrip("0") in {"1", "2", "5"}
    assert len(Histogram.of(array(numbers), width).counts) <= 402


def test_nothing_at_all() -> None:
    none = array([])
    found = Distribution.of(none, bin_width(none))
    assert (found.count, found.mean, found.histogram.counts) == (0, 0.0, ())


# ── shares ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_wilson_by_hand() -> None:
    """All of n won: (1 + z²/2n) / (1 + z²/n) ∓ (z²/2n) / (1 + z²/n), from 1 / (1 + z²/n) to 1; 4 / 7.84146 for 4."""
    found = wilson(4, 4)
    assert found.low == pytest.approx(0.510109, abs=1e-6)
    assert found.high == 1.0


def test_wilson_is_not_walds_interval() -> None:
    """The interval p̂ ∓ z √(p̂ (1 − p̂) / n) would have width 0 here."""
    assert wilson(0, 20).high == pytest.approx(0.161125, abs=1e-6)


def test_wilson_as_printed() -> None:
    """81 of 263: 0.255 to 0.366 (Newcombe 1998, Table I, method 3)."""
    found = wilson(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)


@given(st.integers(1, 10_000), st.data())
def test_the_ends_of_wilsons_interval_solve_its_equation(count: int, data: st.DataObject) -> None:
    wins = data.draw(st.integers(0, count))
    found = wilson(wins, count)
    assert 0 <= found.low <= found.share <= found.high <= 1
    for end in (found.low, found.high):
        distance, allowed = abs(found.share - end), 1.959963984540054 * math.sqrt(end * (1 - end) / count)
        assert distance == pytest.approx(allowed, abs=1e-6)


@given(st.integers(0, 500), st.integers(1, 500))
def test_losing_mirrors_winning(wins: int, more: int) -> None:
    count = wins + more
    one, other = wilson(wins, count), wilson(count - wins, count)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


# ── correlation ─────────────────────────────────────────────────────────────────────────────────────────────────────

pairs = st.lists(st.tuples(st.integers(-99, 99), st.integers(-99, 99)), min_size=2, max_size=40)


@given(pairs)
def test_pearson_by_plain_loops(rows: list[tuple[int, int]]) -> None:
    count = len(rows)
    a, b = (Fraction(sum(row[k] for row in rows), count) for k in (0, 1))
    both = sum((x - a) * (y - b) for x, y in rows)
    one, other = sum((x - a) ** 2 for x, _ in rows), sum((y - b) ** 2 for _, y in rows)
    found = pearson_correlation(*np.array(rows).T)
    if one == 0 or other == 0:
        assert found is None
    else:
        assert found == pytest.approx(float(both) / math.sqrt(one * other), abs=1e-9)


@given(pairs, st.floats(1e-300, 1e300))
def test_pearson_knows_no_unit(rows: list[tuple[int, int]], unit: float) -> None:
    one, other = np.array(rows, dtype=float).T
    assert pearson_correlation(one * unit, other) == pytest.approx(pearson_correlation(one, other), abs=1e-9)
    assert pearson_correlation(other, one) == pytest.approx(pearson_correlation(one, other), abs=1e-9)
