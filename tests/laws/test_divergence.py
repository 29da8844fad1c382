"""Laws of divergences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lit_align.objectives import Divergence

from .cases import assert_same, gradient, parts

Rule = Callable[[Tensor], Tensor]


def log_ratios(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.linspace(-30, 30, 242, dtype=dtype).reshape(121, 2)


def shape_and_dtype_are_kept(divergence: Rule) -> None:
    for dtype in (torch.float32, torch.float64):
        score = divergence(log_ratios(dtype))
        assert score.shape == (121, 2)
        assert score.dtype == dtype


def values_and_gradients_are_finite(divergence: Rule) -> None:
    log_ratio = torch.tensor([[-300.0, 300.0], [-100.0, 100.0]], requires_grad=True)
    score = divergence(log_ratio)
    assert score.isfinite().all()
    assert gradient(score, log_ratio).isfinite().all()


def a_likelier_response_scores_higher(divergence: Rule) -> None:
    score = divergence(log_ratios()).flatten()
    assert (score.diff() > 0).all()


def what_is_lost_still_has_a_slope(divergence: Rule) -> None:
    log_ratio = torch.tensor([[-300.0, -50.0]], requires_grad=True)
    assert (gradient(divergence(log_ratio), log_ratio) > 0).all()


def equal_models_score_zero(divergence: Rule) -> None:
    assert_same(divergence(torch.zeros(1, 2)), torch.zeros(1, 2))


def near_equal_models_the_slope_is_known(divergence: Rule) -> None:
    """``h'(0) = f''(1)``: 1, or 1/2 for Jensen-Shannon."""
    log_ratio = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    slope = gradient(divergence(log_ratio), log_ratio)
    assert slope.unique().item() in (0.5, 1.0)


def responses_are_independent(divergence: Rule) -> None:
    score = divergence(log_ratios())
    assert_same(divergence(log_ratios()[:3].flip(1)), score[:3].flip(1))


LAWS: dict[Callable[[Rule], None], Rule] = {
    shape_and_dtype_are_kept: lambda r: r.float(),
    values_and_gradients_are_finite: lambda r: 1 - torch.exp(-r),
    a_likelier_response_scores_higher: lambda r: torch.expm1(-r),
    what_is_lost_still_has_a_slope: lambda r: -torch.expm1((-r).clamp(max=36.0)),
    equal_models_score_zero: lambda r: -torch.exp(-r),
    near_equal_models_the_slope_is_known: lambda r: 2 * r,
    responses_are_independent: lambda r: r - r.mean(),
}
"""Each law and an objective that violates it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("divergence", parts(Divergence), ids=repr)
def test_law(divergence: Divergence, law: Callable[[Rule], None]) -> None:
    law(divergence)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Rule], None], wrong: Rule) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
