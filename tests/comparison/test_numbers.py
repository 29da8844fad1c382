"""Every number of a comparison, against an independent computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lit_align.comparison.numbers import (
    PlanePoint,
    correlation_interval,
    differing_keys,
    over_seeds,
    paired_gain,
    results,
    seed_groups,
    share_interval,
    t_interval,
    training_plane,
    with_front,
)
from lit_align.comparison.runs import Run


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = [0.3, 1.7, 2.2, 0.9, 1.1]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (t := t_interval(values)).n == 5
    assert [t.value, t.low, t.high] == pytest.approx([np.mean(values), low, high])
    assert t_interval([2.0]).low is None


def test_the_interval_of_a_correlation_is_that_of_scipy() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    y = y + x
    expected = stats.pearsonr(x, y)
    interval = correlation_interval(float(expected.statistic), 50)
    assert [interval.low, interval.high] == pytest.approx(list(expected.confidence_interval(0.95)))


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    expected = stats.binomtest(13, 40).proportion_ci(0.95, "wilson")
    interval = share_interval(13 / 40, 40)
    assert [interval.low, interval.high] == pytest.approx(list(expected))
    assert share_interval(0.5, 0).low is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=20))
def test_the_front_holds_what_no_other_point_beats(places: list[tuple[int, int]]) -> None:
    points = with_front([PlanePoint("x", 0, length, score) for length, score in places])
    for point in points:
        beaten = any(
            other.length <= point.length
            and other.score >= point.score
            and (other.length, other.score) != (point.length, point.score)
            for other in points
        )
        assert point.in_front == (not beaten)


def test_the_plane_has_a_point_for_each_step(runs: list[Run]) -> None:
    plane = training_plane(runs)
    assert plane is not None
    assert [(p.name, p.step, p.length, p.score) for p in plane.points if p.name == "a-0"] == [
        ("a-0", 0, 20.0, 1.0),
        ("a-0", 10, 30.0, 2.5),
        ("a-0", 20, 40.0, 2.5),
    ]
    starts = [("a-0", 0), ("a-1", 0), ("b", 0)]
    assert [(p.name, p.step) for p in plane.front] == [("b", 10), *starts, ("a-1", 10), ("a-1", 20), ("b", 20)]


def test_without_scores_the_accuracy_of_the_validation_is_the_score() -> None:
    accuracy = {"val/rewards/accuracies": {10: 0.6, 20: 0.7}, "samples/policy/length/mean": {0: 9.0, 20: 12.0}}
    only_score = {"samples/policy/score": {0: 1.0}, "samples/policy/length/mean": {0: 5.0}}
    plain = Run("a", None, curves=accuracy)
    plane = training_plane([plain, Run("b", None, curves=accuracy), Run("c", None, curves=only_score)])
    assert (plane.score, plane.without) == ("val/rewards/accuracies", ("c",))
    assert plane.points[0] == PlanePoint("a", 20, 12.0, 0.7, True)
    assert training_plane([Run("d", None, curves={"val/loss": {1: 1.0}})]) is None


def test_results_are_the_last_values(runs: list[Run]) -> None:
    ends = results(runs[0])
    low, high = stats.t.interval(0.95, 3, 2.5, stats.sem([2, 4, 3, 1]))
    score = ends["samples/policy/score"]
    assert [score.value, score.low, score.high, score.n] == pytest.approx([2.5, low, high, 4])
    accuracy = ends["val/rewards/accuracies"]
    expected = stats.binomtest(120, 200).proportion_ci(0.95, "wilson")
    assert [accuracy.value, accuracy.low, accuracy.high] == pytest.approx([0.6, *expected])
    assert "val/rewards/margins" not in ends, "it was never finite"


def test_a_validation_on_part_of_the_pairs_has_no_interval(runs: list[Run]) -> None:
    part = Run("x", None, {**runs[0].settings, "trainer.limit_val_batches": 2}, runs[0].curves, data=runs[0].data)
    assert results(part)["val/rewards/accuracies"].low is None


def test_gains_are_paired_by_prompt(runs: list[Run]) -> None:
    gain = paired_gain(runs[2], runs[0])
    expected = stats.ttest_rel([5, 3, 4, 4], [2, 4, 3, 1]).confidence_interval(0.95)
    assert [gain.value, gain.low, gain.high, gain.n] == pytest.approx([1.5, *expected, 4])
    assert paired_gain(Run("x", None), runs[0]) is None


def test_runs_that_differ_in_the_seed_are_one_group(runs: list[Run]) -> None:
    assert [[run.name for run in group] for group in seed_groups(runs)] == [["a-0", "a-1"], ["b"]]
    assert differing_keys(runs) == ["seed_everything", "model.objective.beta"]
    score = over_seeds(runs[:2])["samples/policy/score"]
    low, high = stats.t.interval(0.95, 1, 2.625, stats.sem([2.5, 2.75]))
    assert [score.value, score.low, score.high] == pytest.approx([2.625, low, high])


def test_an_evaluation_during_the_run_brings_its_intervals() -> None:
    ends = {"eval/win_rate": 0.6, "eval/win_rate/low": 0.5, "eval/win_rate/high": 0.7, "eval/length/tokens": 30.0}
    run = Run("a", None, curves={name: {0: 0.1, 20: value} for name, value in ends.items()})
    win_rate = results(run)["eval/win_rate"]
    assert (win_rate.value, win_rate.low, win_rate.high) == (0.6, 0.5, 0.7)
    assert "eval/win_rate/low" not in results(run)
    assert training_plane([run]).score == "eval/win_rate"
