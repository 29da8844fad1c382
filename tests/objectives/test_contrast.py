from __future__ import annotations

import math

import pytest
import torch

from lit_align.objectives import Contrast, Hinge, Logistic, Square

CONTRASTS = [Logistic(0.3), Logistic(0.3, 0.2), Square(0.3), Hinge(0.3)]


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
    ],
)
def test_golden(contrast: Contrast, margin: float, expected: float) -> None:
    assert contrast(torch.tensor([margin])).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("margin", [-300.0, 300.0])
def test_far_from_zero_the_logistic_contrast_is_linear_or_nothing(margin: float) -> None:
    assert Logistic(1.0)(torch.tensor([margin])).item() == max(0.0, -margin)


@pytest.mark.parametrize("leaf", [Logistic, Square, Hinge])
@pytest.mark.parametrize("beta", [0.0, -0.1, float("inf"), float("nan")])
def test_beta_is_positive(leaf: type, beta: float) -> None:
    with pytest.raises(ValueError, match=f"{leaf.__name__}.beta"):
        leaf(beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0])
def test_at_most_half_of_the_labels_are_flipped(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match="Logistic.label_smoothing"):
        Logistic(0.1, label_smoothing)


@pytest.mark.parametrize("contrast", CONTRASTS, ids=repr)
def test_gradient(contrast: Contrast) -> None:
    margin = torch.tensor([-4.0, -0.2, 0.7, 9.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrast, (margin,))
