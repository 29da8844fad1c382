"""Laws of whole objectives: the presets, and composed objectives with each part replaced."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives import (
    Averaging,
    Contrast,
    Entropy,
    Logistic,
    Mean,
    NoRefinement,
    Objective,
    PreferenceObjective,
    Regularizer,
    Sum,
)
from lit_align.objectives.base import Needs
from lit_align.types import Outcome, PairLogProbs

from .cases import (
    assert_same,
    corner_pairs,
    each_tensor,
    every_combination,
    gradient,
    objectives,
    preference_objectives,
    random_pairs,
    some_pairs,
    with_gradient,
)

OBJECTIVES = objectives()


def numbers(outcome: Outcome) -> dict[str, Tensor]:
    """Return the tensors of an outcome by name, with terms and observed numbers, without absent fields."""
    values = {field.name: getattr(outcome, field.name) for field in fields(outcome)}
    for many in ("terms", "observed"):
        values |= {f"{many}/{name}": value for name, value in values.pop(many).items()}
    return {name: value for name, value in values.items() if value is not None}


def assert_same_outcome(found: Outcome, expected: Outcome) -> None:
    assert numbers(found).keys() == numbers(expected).keys()
    for name, value in numbers(found).items():
        assert_same(value, numbers(expected)[name])


def everything_is_finite(objective: Objective) -> None:
    logps = with_gradient(corner_pairs())
    outcome = objective(logps)
    assert all(value.isfinite().all() for value in numbers(outcome).values())
    assert gradient(outcome.loss, logps.policy).isfinite().all()


def only_the_loss_carries_a_gradient(objective: Objective) -> None:
    outcome = objective(with_gradient(random_pairs()))
    assert [name for name, value in numbers(outcome).items() if value.requires_grad] == ["loss"]


def padding_never_matters(objective: Objective) -> None:
    logps = random_pairs()
    dirty = each_tensor(logps, lambda value: value if value.dtype == torch.bool else spoilt(value, logps.mask))
    dirty = with_gradient(dirty)
    outcome = objective(dirty)
    assert_same_outcome(outcome, objective(logps))
    slope = gradient(outcome.loss, dirty.policy)
    assert slope.isfinite().all()
    assert (slope[~logps.mask] == 0).all()
    wider = each_tensor(logps, lambda value: torch.nn.functional.pad(value, (0, 3)))
    assert_same_outcome(objective(wider), objective(logps))


def spoilt(value: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, value, float("nan"))


def dependence_on_other_pairs_is_stated(objective: Objective) -> None:
    """The loss of a pair is the same in any batch, unless the objective declares that it is batch-level."""
    logps = random_pairs()
    whole = objective(logps)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        alone = objective(some_pairs(logps, part))
        same = all(torch.equal(value, numbers(whole)[name][part]) for name, value in numbers(alone).items())
        assert same is not objective.needs.batch_level


def the_order_of_pairs_does_not_matter(objective: Objective) -> None:
    logps, order = random_pairs(), torch.tensor([3, 0, 5, 1, 4, 2])
    outcome, shuffled = objective(logps), objective(some_pairs(logps, order))
    for name, value in numbers(outcome).items():
        torch.testing.assert_close(numbers(shuffled)[name], value[order])


def needs_are_stated(objective: Objective) -> None:
    """An objective ignores inputs that it does not need, and raises an error if an input that it needs is missing."""
    logps = random_pairs()
    needed = {name: getattr(objective.needs, "pair_seed" if name == "pair_seed" else name) for name in NEEDS}
    bare = replace(logps, **{name: getattr(logps, name) if needed[name] else None for name in NEEDS})
    assert_same_outcome(objective(bare), objective(logps))
    for name in NEEDS:
        if needed[name]:
            assert complains(objective, replace(logps, **{name: None}))


NEEDS = ("reference", "prompted", "mismatched", "collision", "pair_seed")


def complains(objective: Objective, logps: PairLogProbs) -> bool:
    try:
        objective(logps)
    except ValueError:
        return True
    return False


def swapping_sides_negates_the_margin(objective: PreferenceObjective) -> None:
    logps = random_pairs()
    outcome, swapped = objective(logps), objective(each_tensor(logps, lambda value: value.flip(1)))
    for name in ("margin", "prompted_margin"):
        if getattr(outcome, name) is not None:
            assert_same(getattr(swapped, name), -getattr(outcome, name))


def a_pair_of_equal_responses_teaches_nothing(objective: PreferenceObjective) -> None:
    """The margin is 0, and the gradients of the two sides are exactly opposite.

    Of what the contrast says, that is: a refinement with a gradient of its own looks at one side.
    """
    if objective.refinement.carries_gradient:
        objective = replace(objective, refinement=NoRefinement())
    logps = with_gradient(each_tensor(random_pairs(), lambda value: value[:, :1].expand_as(value)))
    outcome = objective(logps)
    assert_same(outcome.margin, torch.zeros(6))
    slope = gradient(outcome.loss, logps.policy)
    assert slope.abs().sum() > 0
    assert_same(slope[:, 0], -slope[:, 1])


def what_is_reported_is_what_is_optimised(objective: PreferenceObjective) -> None:
    outcome = objective(random_pairs())
    assert_same(outcome.loss, objective.contrast(outcome.margin - outcome.offset))
    rewards = objective.contrast.beta * objective.log_ratio(random_pairs())
    assert_same(outcome.rewards, rewards)
    torch.testing.assert_close(rewards[:, 0] - rewards[:, 1], objective.contrast.beta * outcome.margin)


def equal_models_have_margin_zero(objective: PreferenceObjective) -> None:
    """Under KL, the loss is the contrast at minus the offset."""
    logps = random_pairs()
    outcome = objective(replace(logps, policy=logps.reference))
    assert_same(outcome.margin, torch.zeros(6))
    assert_same(outcome.loss, objective.contrast(-outcome.offset))


def what_both_models_add_cancels(objective: PreferenceObjective) -> None:
    """Under KL, adding a constant to all four log-probabilities of a token changes nothing."""
    logps = random_pairs(dtype=torch.float64)
    shifted = each_tensor(logps, lambda value: value if value.dtype == torch.bool else value - 0.5)
    torch.testing.assert_close(objective(shifted).loss, objective(logps).loss)


class Leaky(Averaging):
    """Sum over padding, too."""

    def __call__(self, values, mask, pair_seed=None):
        return values.sum(-1)


class Lopsided(Averaging):
    """Favour the chosen side."""

    def __call__(self, values, mask, pair_seed=None):
        return torch.where(mask, values, 0.0).sum(-1) * torch.tensor([1.0, 0.5], dtype=values.dtype)


class Crowd(Averaging):
    """Compare with the rest of the batch."""

    def __call__(self, values, mask, pair_seed=None):
        total = torch.where(mask, values, 0.0).sum(-1)
        return total - total.mean()


class Queue(Averaging):
    """Compare with the preceding pair."""

    def __call__(self, values, mask, pair_seed=None):
        return torch.where(mask, values, 0.0).sum(-1).cumsum(0)


class HalfKL(Regularizer):
    """Subtract half of the reference without declaring that it is needed."""

    needs = Needs()

    def __call__(self, policy, reference):
        return policy if reference is None else policy - 0.5 * reference


class Naive(Contrast):
    """The logistic contrast, written out."""

    beta = 1.0

    def __call__(self, margin):
        return -torch.log(torch.sigmoid(margin))


@dataclass(frozen=True)
class Boastful:
    """Report the rewards of another β, with their gradient."""

    inner: PreferenceObjective = PreferenceObjective(Logistic())

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, logps):
        return replace(self.inner(logps), rewards=self.inner.log_ratio(logps))


LOGISTIC = PreferenceObjective(Logistic())

LAWS: dict[Callable[[Objective], None], Objective] = {
    everything_is_finite: PreferenceObjective(Naive()),
    only_the_loss_carries_a_gradient: Boastful(),
    padding_never_matters: replace(LOGISTIC, averaging=Leaky()),
    dependence_on_other_pairs_is_stated: replace(LOGISTIC, averaging=Crowd()),
    the_order_of_pairs_does_not_matter: replace(LOGISTIC, averaging=Queue()),
    needs_are_stated: replace(LOGISTIC, regularizer=HalfKL()),
}
MARGIN_LAWS: dict[Callable[[PreferenceObjective], None], PreferenceObjective] = {
    swapping_sides_negates_the_margin: replace(LOGISTIC, averaging=Lopsided()),
    a_pair_of_equal_responses_teaches_nothing: replace(LOGISTIC, averaging=Lopsided()),
    what_is_reported_is_what_is_optimised: Boastful(),
}
KL_LAWS: dict[Callable[[PreferenceObjective], None], PreferenceObjective] = {
    equal_models_have_margin_zero: replace(LOGISTIC, regularizer=HalfKL()),
    what_both_models_add_cancels: replace(LOGISTIC, regularizer=Entropy()),
}
"""Each law and an objective that violates it."""

ALL_LAWS = {**LAWS, **MARGIN_LAWS, **KL_LAWS}


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_law(objective: Objective, law: Callable[[Objective], None]) -> None:
    law(objective)


@pytest.mark.parametrize("law", MARGIN_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("objective", preference_objectives(), ids=repr)
def test_margin_law(objective: PreferenceObjective, law: Callable[[PreferenceObjective], None]) -> None:
    law(objective)


@pytest.mark.parametrize("law", KL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("objective", preference_objectives(), ids=repr)
def test_law_under_kl(objective: PreferenceObjective, law: Callable[[PreferenceObjective], None]) -> None:
    law(replace(objective, regularizer=LOGISTIC.regularizer))


@pytest.mark.parametrize(("law", "wrong"), ALL_LAWS.items(), ids=[law.__name__ for law in ALL_LAWS])
def test_law_can_fail(law: Callable[[Objective], None], wrong: Objective) -> None:
    with pytest.raises(AssertionError):
        law(wrong)


@pytest.mark.long
@pytest.mark.slow
def test_every_combination_of_parts_is_an_objective() -> None:
    for objective in every_combination():
        everything_is_finite(objective)


@pytest.mark.parametrize(("averaging", "expected"), [(Sum(), math.log(2)), (Mean(), float("nan"))], ids=repr)
def test_a_response_without_tokens_is_never_given_an_invented_mean(averaging: Averaging, expected: float) -> None:
    logps = replace(random_pairs(), mask=torch.zeros(6, 2, 7, dtype=torch.bool))
    loss = replace(LOGISTIC, averaging=averaging)(logps).loss
    torch.testing.assert_close(loss, torch.full((6,), expected), equal_nan=True)
