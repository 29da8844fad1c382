"""Laws of pointwise losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_align.objectives import Pointwise

from .cases import assert_same, gradient, parts


def grid(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return all pairs of two scores."""
    return torch.tensor(list(product(values, repeat=2)), dtype=dtype)


def shape_and_dtype_are_kept(loss: Pointwise) -> None:
    for dtype in (torch.float32, torch.float64):
        found = loss(grid(-9, -1, 0, 1, 9, dtype=dtype))
        assert found.shape == (25, 2)
        assert found.dtype == dtype


def values_and_gradients_are_finite(loss: Pointwise) -> None:
    scores = (grid(-300, 0, 300) / loss.beta).requires_grad_()
    found = loss(scores)
    assert found.isfinite().all()
    assert gradient(found, scores).isfinite().all()


def values_agree_with_higher_precision(loss: Pointwise) -> None:
    scores = grid(-300, -30, -1, 0, 1, 30, 300) / loss.beta
    torch.testing.assert_close(loss(scores).double(), loss(scores.double()), rtol=1e-5, atol=1e-6)


def loss_is_never_negative(loss: Pointwise) -> None:
    assert (loss(grid(*range(-50, 51, 5)) / loss.beta) >= 0).all()


def equal_models_are_pulled_apart(loss: Pointwise) -> None:
    """The rejected score is lowered, and the chosen score is raised or lowered less."""
    scores = torch.zeros(1, 2, requires_grad=True)
    chosen, rejected = gradient(loss(scores), scores)[0]
    assert rejected > 0
    assert rejected > chosen


def chosen_and_rejected_are_different_things(loss: Pointwise) -> None:
    scores = torch.tensor([[1.0, -1.0]])
    assert loss(scores).sum() < loss(scores.flip(1)).sum()


def a_shift_of_both_scores_matters(loss: Pointwise) -> None:
    """Otherwise the loss is a function of the margin, which is a contrast."""
    scores = torch.tensor([[0.5, -0.5]]) / loss.beta
    assert not torch.allclose(loss(scores).sum(-1), loss(scores + 1 / loss.beta).sum(-1))


def beta_is_the_unit_of_the_scores(loss: Pointwise) -> None:
    """At twice the β and half the scores, the slopes have the same signs."""
    scores = grid(-7, -3, -1, 1, 3, 7, dtype=torch.float64).requires_grad_()
    doubled = replace(loss, beta=2 * loss.beta)  # type: ignore[type-var]
    slope, halved = gradient(loss(scores), scores), gradient(doubled(scores / 2), scores)
    torch.testing.assert_close(slope.sign(), halved.sign())


def a_glance_at_the_other_side_is_stated(loss: Pointwise) -> None:
    scores = grid(-9, -1, 0, 1, 9)
    moved = scores + torch.tensor([0.0, 1.0]), scores + torch.tensor([1.0, 0.0])
    apart = all(torch.equal(loss(scores)[:, side], loss(moved[side])[:, side]) for side in (0, 1))
    assert apart is not loss.needs.rejected


def the_meaning_of_beta_is_stated(loss: Pointwise) -> None:
    """At equal models a larger β gives larger slopes, or smaller slopes if β sets targets."""
    scores = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    slope = gradient(loss(scores), scores).abs().sum()
    doubled = replace(loss, beta=2 * loss.beta)  # type: ignore[type-var]
    assert (gradient(doubled(scores), scores).abs().sum() > slope).item() is loss.beta_sets_slope


def pairs_are_independent(loss: Pointwise) -> None:
    scores = grid(-9, -1, 0, 1, 9)
    assert_same(loss(scores[2:4]), loss(scores)[2:4])


@dataclass(frozen=True)
class Wrong(Pointwise):
    """A pointwise loss made of a function of the scores times β."""

    rule: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    beta: float = 1.0

    def __call__(self, scores):
        return torch.stack(self.rule(*(self.beta * scores).unbind(-1)), -1)


@dataclass(frozen=True)
class NoUnit(Pointwise):
    """Ignore β."""

    beta: float = 1.0

    def __call__(self, scores):
        return (scores + torch.tensor([-2.0, 2.0])) ** 2


LAWS: dict[Callable[[Pointwise], None], Pointwise] = {
    shape_and_dtype_are_kept: Wrong(lambda w, r: (F.softplus(-w), F.softplus(r).double())),
    values_and_gradients_are_finite: Wrong(lambda w, r: (-torch.log(torch.sigmoid(w)), F.softplus(r))),
    values_agree_with_higher_precision: Wrong(lambda w, r: (torch.log1p(torch.exp(-w)), F.softplus(r))),
    loss_is_never_negative: Wrong(lambda w, r: (-w, r)),
    equal_models_are_pulled_apart: Wrong(lambda w, r: (F.softplus(w), F.softplus(-r))),
    chosen_and_rejected_are_different_things: Wrong(lambda w, r: (F.softplus(w), F.softplus(r))),
    a_shift_of_both_scores_matters: Wrong(lambda w, r: (F.softplus(r - w), 0 * r)),
    beta_is_the_unit_of_the_scores: NoUnit(),
    a_glance_at_the_other_side_is_stated: Wrong(lambda w, r: (F.softplus(-w), F.softplus(r - w))),
    the_meaning_of_beta_is_stated: NoUnit(),
    pairs_are_independent: Wrong(lambda w, r: (F.softplus(w.mean() - w), F.softplus(r))),
}
"""Each law and an objective that violates it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("loss", parts(Pointwise), ids=repr)
def test_law(loss: Pointwise, law: Callable[[Pointwise], None]) -> None:
    law(loss)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Pointwise], None], wrong: Pointwise) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
