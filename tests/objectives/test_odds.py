from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lit_align.objectives import Hinge, OddsRatio, Sum
from lit_align.objectives.examples import worked_pair
from lit_align.objectives.odds import NEAREST_TO_CERTAIN, log_odds

from ..laws.cases import gradient


def test_golden() -> None:
    """-2 - log(1 - e^-2) = -1.8545865 and -1.5 - log(1 - e^-1.5) = -1.2475175."""
    outcome = OddsRatio()(worked_pair())
    torch.testing.assert_close(outcome.rewards, torch.tensor([[-1.8545865, -1.2475175]]))
    assert outcome.margin is not None
    assert outcome.margin.item() == pytest.approx(-0.6070690, abs=1e-6)
    assert outcome.loss.item() == pytest.approx(1.0420580, abs=1e-6)


def test_the_contrast_and_the_averaging_are_free() -> None:
    assert OddsRatio(Hinge(beta=2.0))(worked_pair()).loss.item() == pytest.approx(1 + 2 * 0.6070690, abs=1e-5)
    summed = OddsRatio(averaging=Sum())(worked_pair())
    assert summed.margin is not None
    assert summed.margin.item() == pytest.approx(40.0, abs=1e-4)  # improbable: odds are probabilities


@pytest.mark.parametrize("value", [-1e-5, -0.01, -0.5, -1.0, -20.0, -300.0])
def test_agrees_with_the_definition(value: float) -> None:
    exact = value - math.log(-math.expm1(value))
    found = log_odds(torch.tensor([[value]]))
    assert found.item() == pytest.approx(exact, rel=1e-6)


def test_certainty_has_finite_odds_and_a_finite_slope() -> None:
    """Peers reach log 0 here; this one reaches the tangent at one in a million."""
    log_probs = torch.tensor([[0.0, -1e-7], [NEAREST_TO_CERTAIN, -1e-5]], requires_grad=True)
    odds = log_odds(log_probs)
    slope = gradient(odds, log_probs)
    assert odds.isfinite().all()
    assert slope.isfinite().all()
    assert odds[0, 0].item() == pytest.approx(math.log(1e6) + 1, rel=1e-5)
    assert odds[0, 0] > odds[0, 1] > odds[1, 0] > odds[1, 1]
    assert slope[0, 0].item() == pytest.approx(1e6, rel=1e-5)


def test_a_response_that_is_certain_keeps_the_loss_finite() -> None:
    pair = worked_pair()
    certain = replace(pair, policy=torch.zeros_like(pair.policy).requires_grad_())
    outcome = OddsRatio()(certain)
    assert outcome.loss.item() == pytest.approx(math.log(2))
    assert gradient(outcome.loss, certain.policy).isfinite().all()


def test_no_reference_is_looked_at() -> None:
    assert not OddsRatio().needs.reference
    assert torch.equal(OddsRatio()(replace(worked_pair(), reference=None)).loss, OddsRatio()(worked_pair()).loss)


def test_gradient() -> None:
    log_probs = torch.tensor([[-2.0, -0.3], [-0.01, -9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(log_odds, (log_probs,))
