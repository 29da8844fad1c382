from __future__ import annotations

import numpy as np
import pytest

from lit_align.evaluation.intervals import as_cells, bootstrap, bootstrap_mean, resamples


def test_the_interval_is_that_of_draws_made_by_hand() -> None:
    cells = np.random.default_rng(1).normal(size=(6, 2))
    means = [
        np.mean([[cells[p, s] for s in seeds] for p in prompts])
        for prompts, seeds in zip(*resamples(6, 2, 300), strict=True)
    ]
    estimate = bootstrap(cells, lambda rows: float(rows.mean()), count=300)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))
    assert estimate.value == pytest.approx(cells.mean())
    fast = bootstrap_mean(cells, 300)
    assert (fast.value, fast.low, fast.high, fast.n) == pytest.approx((*_ends(estimate), 12))


def _ends(estimate: object) -> tuple[float, ...]:
    return tuple(getattr(estimate, name) for name in ("value", "low", "high"))


def test_the_interval_covers_the_truth_in_95_of_100() -> None:
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        estimate = bootstrap_mean(random.normal(size=(60, 1)) + 3, 300)
        assert estimate.low is not None
        assert estimate.high is not None
        inside += estimate.low <= 3 <= estimate.high
    assert 0.90 <= inside / 200 <= 0.98


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(2).normal(size=(400, 1))
    estimate = bootstrap_mean(values)
    assert estimate.high is not None
    assert estimate.low is not None
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = np.random.default_rng(3).normal(size=(200, 1))
    apart = np.concatenate([base - 1, base + 1], axis=1)
    together = np.concatenate([base, base], axis=1)

    def width(cells: np.ndarray) -> float:
        estimate = bootstrap_mean(cells)
        assert estimate.low is not None
        assert estimate.high is not None
        return estimate.high - estimate.low

    assert width(apart) > 3 * width(together)


def test_every_prompt_needs_every_seed() -> None:
    with pytest.raises(ValueError, match="row 4 has no value for seed 1"):
        as_cells([(3, 0, 1.0), (3, 1, 1.0), (4, 0, 1.0)])
