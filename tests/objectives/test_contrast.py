from __future__ import annotations

import math

import pytest
import torch

from lit_align.objectives import Contrast, Hinge, Logistic, LogisticExponential, ReverseLogistic, Robust, Square

CONTRASTS = [
    Logistic(0.3),
    Logistic(0.3, 0.2),
    Square(0.3),
    Hinge(0.3),
    Robust(0.3, 0.2),
    ReverseLogistic(0.3, 0.2),
    LogisticExponential(0.3, 0.2),
]


@pytest.mark.parametrize(
    ("contrast", "margin", "expected"),
    [
        (Logistic(0.1), 7.0, 0.4031860),  # -log σ(0.7)
        (Logistic(2.0), 0.55, 0.2873353),  # -log σ(1.1)
        (Logistic(0.1, 0.1), 7.0, 0.4731860),  # 0.4031860 + 0.1 · 0.7
        (Logistic(1.0), 0.0, math.log(2)),
        (Square(0.1), 7.0, 4.0),  # (7 - 5)²
        (Square(0.5), 0.55, 0.2025),  # (0.55 - 1)²
        (Hinge(0.1), 7.0, 0.3),
        (Hinge(0.1), 10.0, 0.0),
        (Robust(0.1, 0.1), 7.0, 0.3156860),  # (0.9 · 0.4031860 - 0.1 · 1.1031860) / 0.8
        (Robust(0.1, 0.0), 7.0, 0.4031860),
        (ReverseLogistic(0.1, 0.1), 7.0, 0.1989718),  # .6681878 (-.2978255) + .3318122 · 1.1993991
        (ReverseLogistic(0.1, 0.25), 10 * math.log(3.0), 0.0),  # the policy agrees with the smoothed label
        (LogisticExponential(0.1), 7.0, 0.4965852),  # e^-.7, up to σ(-14)
        (LogisticExponential(0.1), -7.0, 1.1031868),  # -log σ(-.7), up to σ(-14)
        (LogisticExponential(0.1), 0.0, (math.log(2) + 1) / 2),
    ],
)
def test_golden(contrast: Contrast, margin: float, expected: float) -> None:
    assert contrast(torch.tensor([margin])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("margin", [-300.0, 300.0])
def test_far_from_zero_the_logistic_contrast_is_linear_or_nothing(margin: float) -> None:
    assert Logistic(1.0)(torch.tensor([margin])).item() == max(0.0, -margin)


def reference(contrast: Contrast, logit: float) -> tuple[float, float]:
    """Value and slope of a new contrast from its printed formula, each log-sigmoid on the side where it is exact."""

    def log_sigmoid(z: float) -> float:
        return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))

    up, down = math.exp(log_sigmoid(logit)), math.exp(log_sigmoid(-logit))
    if isinstance(contrast, Robust):
        flips = contrast.label_smoothing
        value = (-(1 - flips) * log_sigmoid(logit) + flips * log_sigmoid(-logit)) / (1 - 2 * flips)
        return value, -((1 - flips) * down + flips * up) / (1 - 2 * flips)
    if isinstance(contrast, ReverseLogistic):
        kept, flipped = math.log(1 - contrast.label_smoothing), math.log(contrast.label_smoothing)
        value = up * (log_sigmoid(logit) - kept) + down * (log_sigmoid(-logit) - flipped)
        return value, up * down * (logit - kept + flipped)
    assert isinstance(contrast, LogisticExponential)
    passage = logit / contrast.temperature
    late, early = math.exp(log_sigmoid(passage)), math.exp(log_sigmoid(-passage))
    exponential = math.exp(log_sigmoid(passage) - logit)
    slope = -down * early + log_sigmoid(logit) * late * early / contrast.temperature
    return -log_sigmoid(logit) * early + exponential, slope + exponential * (early / contrast.temperature - 1)


@pytest.mark.parametrize("contrast", [Robust(0.5, 0.2), ReverseLogistic(0.5), LogisticExponential(0.5)], ids=repr)
@pytest.mark.parametrize("logit", [-300.0, -40.0, -3.0, -0.05, 0.0, 0.05, 3.0, 40.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_as_near_by_values_and_slopes_are_those_of_the_formula(
    contrast: Contrast, logit: float, dtype: torch.dtype
) -> None:
    value, slope = reference(contrast, logit)
    margin = torch.tensor([logit / contrast.beta], dtype=dtype, requires_grad=True)
    loss = contrast(margin)
    loss.backward()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert margin.grad is not None
    assert loss.item() == pytest.approx(value, rel=tolerance, abs=tolerance)
    assert margin.grad.item() == pytest.approx(contrast.beta * slope, rel=tolerance, abs=tolerance)


def test_flips_cancel_in_the_mean_of_the_robust_loss() -> None:
    margin, clean, flips = torch.tensor([3.0, -8.0]), Logistic(0.3), 0.2
    robust = Robust(0.3, flips)
    torch.testing.assert_close((1 - flips) * robust(margin) + flips * robust(-margin), clean(margin))


def test_the_reverse_divergence_rests_where_the_label_is() -> None:
    margin = torch.tensor([math.log(0.9 / 0.1) / 0.3], dtype=torch.float64, requires_grad=True)
    contrast = ReverseLogistic(0.3, 0.1)
    (slope,) = torch.autograd.grad(contrast(margin), margin)
    assert slope.abs() < 1e-12
    assert contrast(margin).abs() < 1e-12


@pytest.mark.parametrize("leaf", [Logistic, Square, Hinge, Robust, ReverseLogistic, LogisticExponential])
@pytest.mark.parametrize("beta", [0.0, -0.1, float("inf"), float("nan")])
def test_beta_is_positive(leaf: type, beta: float) -> None:
    with pytest.raises(ValueError, match=f"{leaf.__name__}.beta"):
        leaf(beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0])
def test_at_most_half_of_the_labels_are_flipped(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match="Logistic.label_smoothing"):
        Logistic(0.1, label_smoothing)
    with pytest.raises(ValueError, match="Robust.label_smoothing"):
        Robust(0.1, label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
def test_the_reverse_divergence_from_a_certain_label_would_be_infinite(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match="ReverseLogistic.label_smoothing"):
        ReverseLogistic(0.1, label_smoothing)


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_the_exponential_must_not_reach_the_lost_side(temperature: float) -> None:
    with pytest.raises(ValueError, match="LogisticExponential.temperature"):
        LogisticExponential(0.1, temperature)


@pytest.mark.parametrize("contrast", CONTRASTS, ids=repr)
def test_gradient(contrast: Contrast) -> None:
    margin = torch.tensor([-4.0, -0.2, 0.7, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrast, (margin,))
