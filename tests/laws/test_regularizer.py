"""Laws of regularizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lit_align.objectives import Needs, Regularizer

from .cases import assert_same, corner_pairs, gradient, parts, random_pairs, with_gradient


def shape_is_kept(regularizer: Regularizer) -> None:
    logps = random_pairs()
    assert regularizer(logps.policy, logps.reference).shape == logps.policy.shape
    rollouts = logps.policy[:, 0]  # the online wing has no sides
    assert regularizer(rollouts, rollouts).shape == rollouts.shape


def values_and_gradients_are_finite(regularizer: Regularizer) -> None:
    logps = with_gradient(corner_pairs())
    penalty = regularizer(logps.policy, logps.reference)
    assert penalty.isfinite().all()
    assert gradient(penalty, logps.policy).isfinite().all()


def the_penalty_of_a_token_depends_on_it_alone(regularizer: Regularizer) -> None:
    logps = random_pairs()
    assert logps.reference is not None
    penalty = regularizer(logps.policy, logps.reference)
    assert_same(regularizer(logps.policy.flip(-1), logps.reference.flip(-1)), penalty.flip(-1))
    assert_same(regularizer(logps.policy[..., :2], logps.reference[..., :2]), penalty[..., :2])


def likelier_is_dearer(regularizer: Regularizer) -> None:
    logps = random_pairs()
    assert (regularizer(logps.policy + 0.1, logps.reference) > regularizer(logps.policy, logps.reference)).all()


def needs_are_stated(regularizer: Regularizer) -> None:
    logps = random_pairs()
    if regularizer.needs.reference:
        try:
            regularizer(logps.policy, None)
        except ValueError as error:
            assert type(regularizer).__name__ in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs a reference, and runs without")
    else:
        assert_same(regularizer(logps.policy, logps.reference), regularizer(logps.policy, None))


class Drops(Regularizer):
    """Sum over the last axis."""

    def __call__(self, policy, reference):
        return policy.sum(-1)


class Ratio(Regularizer):
    """Divide by numbers that may be 0."""

    def __call__(self, policy, reference):
        return policy / reference


class Smooths(Regularizer):
    """Depend on neighbouring tokens."""

    def __call__(self, policy, reference):
        return policy.cumsum(-1)


class Backwards(Regularizer):
    """Return the penalty with the wrong sign."""

    def __call__(self, policy, reference):
        return reference - policy


class Modest(Regularizer):
    """Use the reference without declaring it."""

    needs = Needs()

    def __call__(self, policy, reference):
        return policy if reference is None else policy - reference


LAWS: dict[Callable[[Regularizer], None], Regularizer] = {
    shape_is_kept: Drops(),
    values_and_gradients_are_finite: Ratio(),
    the_penalty_of_a_token_depends_on_it_alone: Smooths(),
    likelier_is_dearer: Backwards(),
    needs_are_stated: Modest(),
}
"""Each law and an objective that violates it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("regularizer", parts(Regularizer), ids=repr)
def test_law(regularizer: Regularizer, law: Callable[[Regularizer], None]) -> None:
    law(regularizer)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Regularizer], None], wrong: Regularizer) -> None:
    with pytest.raises(AssertionError):
        law(wrong)


def test_needing_a_reference_is_refused_by_more_than_words() -> None:
    class Hungry(Regularizer):
        def __call__(self, policy, reference):
            return policy

    with pytest.raises(AssertionError, match="runs without"):
        needs_are_stated(Hungry())


def test_the_corner_batch_reaches_300() -> None:
    logps = corner_pairs()
    assert logps.reference is not None
    assert set((logps.policy - logps.reference).flatten().tolist()) == {-300.0, 0.0, 300.0}
    assert logps.policy.dtype == torch.float32
