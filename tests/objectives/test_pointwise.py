from __future__ import annotations

import math

import pytest
import torch

from lit_align.objectives import (
    AnchoredApart,
    AnchoredDown,
    BinaryLogistic,
    InversePerplexity,
    NoiseContrast,
    Pointwise,
    SquareTargets,
)

from ..laws.cases import gradient

LOSSES = [
    NoiseContrast(0.3),
    BinaryLogistic(0.3),
    SquareTargets(0.3),
    AnchoredApart(0.3),
    AnchoredDown(0.3),
    InversePerplexity(0.3),
]


@pytest.mark.parametrize(
    ("loss", "scores", "expected"),
    [
        (NoiseContrast(0.1), (5.0, -2.0), 1.2601850),  # 0.4740770 + ½ 0.9740770 + ½ 0.5981389
        (BinaryLogistic(0.1), (5.0, -2.0), 1.0722159),  # 0.4740770 + 0.5981389
        (BinaryLogistic(0.1), (0.0, 0.0), 2 * math.log(2)),
        (SquareTargets(0.1), (5.0, -2.0), 9.0),  # (5 - 5)² + (-2 + 5)²
        (SquareTargets(0.1), (5.0, -5.0), 0.0),
        (AnchoredApart(0.1), (5.0, -2.0), 0.8277067),  # 0.3775407 + 0.4501660
        (AnchoredDown(0.1), (5.0, -2.0), 0.9542715),  # 0.6224593 + 0.3318122
        (AnchoredDown(0.1), (0.0, 0.0), 1.0),
        (InversePerplexity(), (-2.0, -1.5), 1.0877949),  # 1 - e^-2 + e^-1.5
    ],
)
def test_golden(loss: Pointwise, scores: tuple[float, float], expected: float) -> None:
    assert loss(torch.tensor([scores])).sum().item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (NoiseContrast(1.0), 450.0),  # 300 + ½ 0 + ½ 300
        (BinaryLogistic(1.0), 600.0),
        (AnchoredApart(1.0), 2.0),
        (AnchoredDown(1.0), 1.0),
    ],
)
def test_far_from_zero(loss: Pointwise, expected: float) -> None:
    """A pair that is lost by 300 on either side."""
    assert loss(torch.tensor([[-300.0, 300.0]])).sum().item() == expected


def test_the_noise_contrast_holds_the_chosen_side_at_twice_the_odds() -> None:
    """At r = log 2 / β, where σ(β r) = 2 σ(-β r), the chosen response has no gradient."""
    scores = torch.tensor([[math.log(2.0) / 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    slope = gradient(NoiseContrast(0.3)(scores), scores)
    assert slope[0, 0].abs() < 1e-12
    assert slope[0, 1] > 0


def test_anchored_down_lowers_both_sides_of_a_pair_that_is_won() -> None:
    scores = torch.tensor([[5.0, -2.0]], requires_grad=True)
    assert (gradient(AnchoredDown(0.3)(scores), scores) > 0).all()
    chosen, rejected = gradient(AnchoredApart(0.3)(scores), scores)[0]
    assert chosen < 0 < rejected


@pytest.mark.parametrize("leaf", [type(loss) for loss in LOSSES])
@pytest.mark.parametrize("beta", [0.0, -0.1, float("inf"), float("nan")])
def test_beta_is_positive(leaf: type, beta: float) -> None:
    with pytest.raises(ValueError, match=f"{leaf.__name__}.beta"):
        leaf(beta)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradient(loss: Pointwise) -> None:
    scores = torch.tensor([[-4.0, -0.2], [0.7, 9.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scores,))


def test_weights_multiply_their_side() -> None:
    found = AnchoredApart(0.1, chosen_weight=1.5, rejected_weight=0.5)(torch.tensor([[5.0, -2.0]]))
    assert found[0].tolist() == pytest.approx([1.5 * 0.3775407, 0.5 * 0.4501660])


@pytest.mark.parametrize("key", ["chosen_weight", "rejected_weight"])
def test_weights_are_not_negative(key: str) -> None:
    with pytest.raises(ValueError, match=f"AnchoredApart.{key}"):
        AnchoredApart(**{key: -1.0})
