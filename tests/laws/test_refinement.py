"""Laws of refinements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives import LostLikelihood, PreferenceObjective, Refinement, RejectedShare, Square, SumOf
from lit_align.objectives.refinement import offset_of
from lit_align.types import PairLogProbs

from .cases import assert_same, corner_pairs, parts, random_pairs, some_pairs, with_gradient

PLAIN = PreferenceObjective(Square())


def shape_is_kept(refinement: Refinement) -> None:
    logps = random_pairs()
    assert refinement(logps, PLAIN.log_ratio).shape == logps.policy.shape[:1]


def values_are_finite(refinement: Refinement) -> None:
    assert refinement(corner_pairs(), PLAIN.log_ratio).isfinite().all()


def a_gradient_passes_only_where_it_is_promised(refinement: Refinement) -> None:
    logps = with_gradient(random_pairs())
    assert logps.prompted is not None
    logps = replace(logps, prompted=with_gradient(logps.prompted))
    offset = refinement(logps, PLAIN.log_ratio)
    assert offset.requires_grad == refinement.carries_gradient
    assert offset_of(refinement, logps, PLAIN.log_ratio).requires_grad == refinement.carries_gradient


def numbers_at_zero_are_no_refinement(refinement: Refinement) -> None:
    logps = random_pairs()
    refined, plain = replace(PLAIN, refinement=neutral(refinement))(logps), PLAIN(logps)
    assert_same(refined.offset, torch.zeros(6))
    assert_same(refined.loss, plain.loss)


def neutral(refinement: Refinement) -> Refinement:
    """Return the refinement with all its numbers set to 0."""
    values = {field.name: getattr(refinement, field.name) for field in fields(refinement)}
    return replace(refinement, **{name: zero(value) for name, value in values.items()})


def zero(value: object) -> object:
    return tuple(neutral(part) for part in value) if isinstance(value, tuple) else 0.0


def needs_are_stated(refinement: Refinement) -> None:
    logps = replace(random_pairs(), prompted=None)
    if refinement.needs.prompted:
        try:
            refinement(logps, PLAIN.log_ratio)
        except ValueError as error:
            assert "quality prompt" in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs the prompted pair, and runs without")
    else:
        assert_same(refinement(logps, PLAIN.log_ratio), refinement(random_pairs(), PLAIN.log_ratio))


def pairs_are_independent(refinement: Refinement) -> None:
    logps = random_pairs()
    whole = refinement(logps, PLAIN.log_ratio)
    assert_same(refinement(some_pairs(logps, slice(2, 4)), PLAIN.log_ratio), whole[2:4])


def the_policy_does_not_move_the_offset(refinement: Refinement) -> None:
    """The offset is a target: it depends only on lengths, constants and the prompted pair."""
    logps = random_pairs()
    moved = replace(logps, policy=logps.policy - 1.0)
    assert_same(refinement(moved, PLAIN.log_ratio), refinement(logps, PLAIN.log_ratio))


@dataclass(frozen=True)
class Wrong(Refinement):
    """A refinement made of a function, with a strength that should switch it off at 0."""

    rule: Callable[[PairLogProbs, Callable[[PairLogProbs], Tensor]], Tensor]
    strength: float = 1.0

    def __call__(self, logps, log_ratio):
        return self.rule(logps, log_ratio)


@dataclass(frozen=True)
class Stubborn(Refinement):
    """Add 1 whatever the strength."""

    strength: float = 1.0

    def __call__(self, logps, log_ratio):
        return self.strength * gap(log_ratio(logps)).detach() + 1


def gap(log_ratio: Tensor) -> Tensor:
    return log_ratio[:, 0] - log_ratio[:, 1]


LAWS: dict[Callable[[Refinement], None], Refinement] = {
    shape_is_kept: Wrong(lambda logps, scores: logps.lengths),
    values_are_finite: Wrong(lambda logps, scores: gap(scores(logps.prompted)).exp()),
    a_gradient_passes_only_where_it_is_promised: Wrong(lambda logps, scores: gap(scores(logps.prompted))),
    numbers_at_zero_are_no_refinement: Stubborn(),
    needs_are_stated: Wrong(lambda logps, scores: gap(scores(logps.prompted or logps))),
    pairs_are_independent: Wrong(lambda logps, scores: gap(scores(logps)) - gap(scores(logps)).mean()),
    the_policy_does_not_move_the_offset: Wrong(lambda logps, scores: logps.policy.sum((1, 2)).detach()),
}
"""Each law and an objective that violates it."""

EXCEPTIONS: dict[tuple[Callable[[Refinement], None], type], str] = {
    (the_policy_does_not_move_the_offset, LostLikelihood): "it is a penalty on the policy, not a target",
    (the_policy_does_not_move_the_offset, RejectedShare): "it is a part of the margin",
    (the_policy_does_not_move_the_offset, SumOf): "the one under test has a part that is a penalty",
}
"""Where a published refinement does not keep a law, and why."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("refinement", parts(Refinement), ids=repr)
def test_law(refinement: Refinement, law: Callable[[Refinement], None]) -> None:
    if (law, type(refinement)) in EXCEPTIONS:
        with pytest.raises(AssertionError):
            law(refinement)
    else:
        law(refinement)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Refinement], None], wrong: Refinement) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
