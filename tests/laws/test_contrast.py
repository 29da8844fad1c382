"""Laws of contrasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_align.objectives import Contrast

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
    """At β times m nats the slope has its sign from β m alone: twice the β, half the margin."""
    margin = torch.linspace(-40, 40, 79, dtype=torch.float64).requires_grad_()
    doubled = type(contrast)(beta=2 * contrast.beta)  # type: ignore[call-arg]
    slope = gradient(contrast(margin), margin)
    halved = gradient(doubled(margin / 2), margin)
    torch.testing.assert_close(slope.sign(), halved.sign())


def pairs_are_independent(contrast: Contrast) -> None:
    margin = torch.linspace(-9, 9, 7)
    assert_same(contrast(margin[2:4]), contrast(margin)[2:4])


@dataclass(frozen=True)
class Wrong(Contrast):
    """A contrast out of a rule that is given the margin times β."""

    rule: Callable[[Tensor], Tensor] = F.softplus
    beta: float = 1.0

    def __call__(self, margin):
        return self.rule(self.beta * margin)


@dataclass(frozen=True)
class NoUnit(Contrast):
    """Ignores its β."""

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
    pairs_are_independent: Wrong(lambda m: F.softplus(m - m.mean())),
}
"""Each law and something that breaks it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("contrast", parts(Contrast), ids=repr)
def test_law(contrast: Contrast, law: Callable[[Contrast], None]) -> None:
    law(contrast)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Contrast], None], wrong: Contrast) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
