"""Laws of refinements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives import PreferenceObjective, Refinement, Square
from lit_align.types import PairLogProbs

from .cases import assert_same, corner_pairs, each_tensor, parts, random_pairs, with_gradient

PLAIN = PreferenceObjective(Square())


def shape_is_kept(refinement: Refinement) -> None:
    logps = random_pairs()
    assert refinement(logps, PLAIN.margin).shape == logps.policy.shape[:1]


def values_are_finite(refinement: Refinement) -> None:
    assert refinement(corner_pairs(), PLAIN.margin).isfinite().all()


def no_gradient_passes(refinement: Refinement) -> None:
    logps = with_gradient(random_pairs())
    assert logps.prompted is not None
    logps = replace(logps, prompted=with_gradient(logps.prompted))
    assert not refinement(logps, PLAIN.margin).requires_grad


def numbers_at_zero_are_no_refinement(refinement: Refinement) -> None:
    logps = random_pairs()
    neutral = replace(refinement, **{field.name: 0.0 for field in fields(refinement)})
    refined, plain = replace(PLAIN, refinement=neutral)(logps), PLAIN(logps)
    assert_same(refined.offset, torch.zeros(6))
    assert_same(refined.loss, plain.loss)


def needs_are_stated(refinement: Refinement) -> None:
    logps = replace(random_pairs(), prompted=None)
    if refinement.needs_prompted:
        try:
            refinement(logps, PLAIN.margin)
        except ValueError as error:
            assert "quality prompt" in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs the prompted pair, and runs without")
    else:
        assert_same(refinement(logps, PLAIN.margin), refinement(random_pairs(), PLAIN.margin))


def pairs_are_independent(refinement: Refinement) -> None:
    logps = random_pairs()
    whole = refinement(logps, PLAIN.margin)
    assert_same(refinement(each_tensor(logps, lambda value: value[2:4]), PLAIN.margin), whole[2:4])


def the_policy_does_not_move_the_offset(refinement: Refinement) -> None:
    """It is a target: only lengths, constants and the prompted pair go into it."""
    logps = random_pairs()
    moved = replace(logps, policy=logps.policy - 1.0)
    assert_same(refinement(moved, PLAIN.margin), refinement(logps, PLAIN.margin))


@dataclass(frozen=True)
class Wrong(Refinement):
    """A refinement out of a rule, with a number that ought to switch it off."""

    rule: Callable[[PairLogProbs, Callable[[PairLogProbs], Tensor]], Tensor]
    strength: float = 1.0

    def __call__(self, logps, margin):
        return self.rule(logps, margin)


@dataclass(frozen=True)
class Stubborn(Refinement):
    """Adds one, whatever its strength."""

    strength: float = 1.0

    def __call__(self, logps, margin):
        return self.strength * margin(logps).detach() + 1


LAWS: dict[Callable[[Refinement], None], Refinement] = {
    shape_is_kept: Wrong(lambda logps, margin: logps.lengths),
    values_are_finite: Wrong(lambda logps, margin: margin(logps.prompted).exp()),
    no_gradient_passes: Wrong(lambda logps, margin: margin(logps.prompted)),
    numbers_at_zero_are_no_refinement: Stubborn(),
    needs_are_stated: Wrong(lambda logps, margin: margin(logps.prompted or logps)),
    pairs_are_independent: Wrong(lambda logps, margin: margin(logps) - margin(logps).mean()),
    the_policy_does_not_move_the_offset: Wrong(lambda logps, margin: logps.policy.sum((1, 2)).detach()),
}
"""Each law and something that breaks it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("refinement", parts(Refinement), ids=repr)
def test_law(refinement: Refinement, law: Callable[[Refinement], None]) -> None:
    law(refinement)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Refinement], None], wrong: Refinement) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
