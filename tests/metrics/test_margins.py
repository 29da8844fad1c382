"""Histograms of margins by length, against counting pair by pair."""

from __future__ import annotations

import math

import torch

from lit_align.metrics.margins import EDGES, MarginsByLength

REWARDS = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0], [50.0, 0.0], [2.0, 1.9], [9.0, 0.0]])
LENGTHS = torch.tensor([[10, 40], [10, 40], [30, 31], [80, 20], [22, 20], [5, 0]])
WEIGHT = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0, 1.0])
"""The last but one is a copy that counts nothing, the last has one response."""


def counted(parts: list[slice]) -> dict[str, object]:
    metric = MarginsByLength()
    for part in parts:
        metric.update(REWARDS[part], LENGTHS[part], WEIGHT[part])
    return metric.compute()


def test_pairs_are_counted_in_their_bucket_and_bin() -> None:
    found = counted([slice(None)])
    buckets = found["buckets"]
    assert {name: (bucket["pairs"], bucket["won"]) for name, bucket in buckets.items()} == {
        "much_shorter": (3.0, 2.0),
        "shorter": (0.0, 0.0),
        "similar": (1.0, 0.0),
        "longer": (0.0, 0.0),
        "much_longer": (1.0, 1.0),
    }
    filled = {
        (name, EDGES[place], EDGES[place + 1]): count
        for name, bucket in buckets.items()
        for place, count in enumerate(bucket["counts"])
        if count
    }
    expected = {("much_shorter", 1.0): 1.0, ("much_shorter", 0.0): 2.0, ("similar", -3.0): 1.0}
    for (bucket, margin), count in expected.items():
        assert [n for (name, low, high), n in filled.items() if name == bucket and low <= margin < high] == [count]
    assert filled["much_longer", EDGES[-2], EDGES[-1]] == 1.0, "what is beyond the last edge counts in the last bin"


def test_batches_do_not_matter() -> None:
    assert counted([slice(None)]) == counted([slice(0, 2), slice(2, 3), slice(3, None)])


def test_the_edges_are_symmetrical_about_zero() -> None:
    assert EDGES[len(EDGES) // 2] == 0.0
    assert all(math.isclose(low, -high, abs_tol=1e-12) for low, high in zip(EDGES, EDGES[::-1], strict=True))


def test_calibration_takes_the_margin_as_a_logit() -> None:
    """Of margins 1, 0 (twice), -3 and 50: the sure side is right in all but the pair at -3; ties are half right."""
    rows = [row for row in counted([slice(None)])["reliability"] if row[0]]
    assert sum(row[0] for row in rows) == 5
    assert sum(row[2] for row in rows) == 1 + 2 * 0.5 + 0 + 1
    sure = [1 / (1 + math.exp(-1)), 0.5, 0.5, 1 / (1 + math.exp(-3)), 1.0]
    assert math.isclose(sum(row[1] for row in rows), sum(sure), rel_tol=1e-6)


def test_responses_alone_count_nothing() -> None:
    metric = MarginsByLength()
    metric.update(REWARDS[:, :1], LENGTHS[:, :1], WEIGHT)
    assert all(bucket["pairs"] == 0 for bucket in metric.compute()["buckets"].values())
