"""The divergence as a metric, and its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_align.metrics.calibration import MatchingDivergence, Reliability
from lit_align.metrics.figures import draw_matching, draw_reliability
from lit_align.online import PairedPreferences

PAIRS = PairedPreferences(torch.tensor([0.5, 1.0, -2.0]), torch.tensor([-3.0, 1.0, -1.0]))


def metric(pairs: PairedPreferences = PAIRS, weight: torch.Tensor | None = None) -> MatchingDivergence:
    found = MatchingDivergence()
    found.update(pairs, torch.ones(len(pairs.score_gap)) if weight is None else weight)
    return found


def test_by_hand() -> None:
    found = metric().compute()
    assert float(found["d1"]) == pytest.approx((12.25 + 0 + 1) / 3)
    assert float(found["d2"]) == pytest.approx(float(PAIRS.bernoulli().mean()), abs=1e-6)


def test_weights_and_splits() -> None:
    weight = torch.tensor([1.0, 0.0, 1.0])
    assert float(metric(weight=weight).compute()["d1"]) == pytest.approx(13.25 / 2)
    parts = MatchingDivergence()
    for row in range(3):
        parts.update(
            PairedPreferences(PAIRS.score_gap[row : row + 1], PAIRS.log_prob_gap[row : row + 1]), torch.ones(1)
        )
    assert float(parts.compute()["d2"]) == pytest.approx(float(metric().compute()["d2"]))
    assert torch.allclose(parts.curve, metric().curve)


def test_nothing_without_pairs() -> None:
    assert MatchingDivergence().compute() == {}


def test_each_pair_is_counted_both_ways() -> None:
    turned = metric(PairedPreferences(-PAIRS.score_gap, -PAIRS.log_prob_gap))
    for name in ("scores", "policy", "curve"):
        assert torch.allclose(getattr(turned, name), getattr(metric(), name)), name
    assert float(metric().scores.sum()) == 6


def test_a_policy_that_matches_lies_on_the_diagonal() -> None:
    gaps = torch.linspace(-4, 4, 81)
    curve = metric(PairedPreferences(gaps, gaps)).curve
    filled = curve[curve[:, 0] > 0]
    assert torch.allclose(filled[:, 1], filled[:, 2])


@pytest.mark.slow
def test_figures_are_written(tmp_path: Path) -> None:
    file = draw_matching(
        {"reference": metric(), "KL": metric(), "empty": MatchingDivergence()}, tmp_path / "a" / "m.png"
    )
    assert file.read_bytes().startswith(b"\x89PNG")
    reliability = Reliability.of(torch.tensor([0.9, 0.6, 0.3]), torch.ones(3))
    assert draw_reliability(reliability, 0.1, tmp_path / "b" / "r.png").stat().st_size > 5000
