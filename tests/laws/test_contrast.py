"""Laws of contrasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_align.objectives import Contrast, LogisticExponential, ReverseLogistic, Robust

from .cases import assert_same, gradient, parts


def shape_and_dtype_are_kept(contrast: Contrast) -> None:
    for dtype in (torch.float32, torch.float64):
        loss = contrast(torch.linspace(-9, 9, 7, dtype=dtype))
        assert loss.shape == (7,)
        assert loss.dtype == dtype


def values_and_gradients_are_finite(contrast: Contrast) -> None:
    margin = torch.tensor([-3000.0, -300.0, 300.0, 3000.0], requires_grad=True)
    loss = contrast(margin)
    assert loss.isfinite().all()
    assert gradient(loss, margin).isfinite().all()


def loss_is_never_negative(contrast: Contrast) -> None:
    assert (contrast(torch.linspace(-300, 300, 601)) >= 0).all()


def a_pair_that_is_not_won_pushes_upward(contrast: Contrast) -> None:
    margin = torch.linspace(-300, 0, 301, dtype=torch.float64).requires_grad_()
    assert (gradient(contrast(margin), margin) < 0).all()


def loss_is_convex(contrast: Contrast) -> None:
    loss = contrast(torch.linspace(-50, 50, 401, dtype=torch.float64))
    assert (loss.diff().diff() > -1e-9).all()


def beta_is_the_unit_of_the_margin(contrast: Contrast) -> None:
    """The sign of the slope depends on β m alone: it is the same at twice the β and half the margin."""
    margin = torch.linspace(-40, 40, 79, dtype=torch.float64).requires_grad_()
    doubled = replace(contrast, beta=2 * contrast.beta)
    slope = gradient(contrast(margin), margin)
    halved = gradient(doubled(margin / 2), margin)
    torch.testing.assert_close(slope.sign(), halved.sign())


def the_meaning_of_beta_is_stated(contrast: Contrast) -> None:
    """At equal models a larger β gives a larger slope, or a smaller slope if β sets a target."""
    margin = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    slope = gradient(contrast(margin), margin).abs()
    steeper = gradient(replace(contrast, beta=2 * contrast.beta)(margin), margin).abs() > slope
    assert steeper.item() is contrast.beta_sets_slope


def values_agree_with_higher_precision(contrast: Contrast) -> None:
    """The float32 result is exact up to relative rounding, also for large margins."""
    margin = torch.tensor([-300.0, -30.0, -1.0, 0.0, 1.0, 30.0, 300.0]) / contrast.beta
    torch.testing.assert_close(contrast(margin).double(), contrast(margin.double()), rtol=1e-5, atol=1e-6)


def pairs_are_independent(contrast: Contrast) -> None:
    margin = torch.linspace(-9, 9, 7)
    assert_same(contrast(margin[2:4]), contrast(margin)[2:4])


@dataclass(frozen=True)
class Wrong(Contrast):
    """A contrast made of a function of the margin times β."""

    rule: Callable[[Tensor], Tensor] = F.softplus
    beta: float = 1.0

    def __call__(self, margin):
        return self.rule(self.beta * margin)


@dataclass(frozen=True)
class NoUnit(Contrast):
    """Ignore β."""

    beta: float = 1.0

    def __call__(self, margin):
        return (margin - 5) ** 2


LAWS: dict[Callable[[Contrast], None], Contrast] = {
    shape_and_dtype_are_kept: Wrong(lambda m: -F.logsigmoid(m).mean()),
    values_and_gradients_are_finite: Wrong(lambda m: -torch.log(torch.sigmoid(m))),
    loss_is_never_negative: Wrong(lambda m: -m),
    a_pair_that_is_not_won_pushes_upward: Wrong(lambda m: -F.logsigmoid(-m)),
    loss_is_convex: Wrong(lambda m: torch.sigmoid(-m)),
    beta_is_the_unit_of_the_margin: NoUnit(),
    the_meaning_of_beta_is_stated: NoUnit(),
    values_agree_with_higher_precision: Wrong(lambda m: torch.log1p(torch.exp(-m))),
    pairs_are_independent: Wrong(lambda m: F.softplus(m - m.mean())),
}
"""Each law and an objective that violates it."""

EXCEPTIONS: dict[tuple[Callable[[Contrast], None], type], str] = {
    (loss_is_never_negative, Robust): "only its mean over the flips of a label is a likelihood",
    (loss_is_convex, ReverseLogistic): "the reverse divergence is bounded on both sides",
    (loss_is_convex, LogisticExponential): "it was found by search",
    (a_pair_that_is_not_won_pushes_upward, LogisticExponential): "it has a local minimum below 0",
}
"""Where a published loss does not keep a law, and why."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("contrast", parts(Contrast), ids=repr)
def test_law(contrast: Contrast, law: Callable[[Contrast], None]) -> None:
    if (law, type(contrast)) in EXCEPTIONS:
        with pytest.raises(AssertionError):
            law(contrast)
    else:
        law(contrast)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Contrast], None], wrong: Contrast) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
