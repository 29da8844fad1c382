from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import OnPolicy, Weighting
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs

from ..laws.cases import assert_same, each_tensor, parts, random_pairs, some_pairs, with_gradient


def weights_are_a_number_of_each_pair(weighting: Weighting) -> None:
    logps = random_pairs()
    weight = weighting(logps)
    assert weight.shape == (6,)
    assert weight.dtype == logps.policy.dtype
    assert (weight >= 0).all()
    assert_same(weighting(some_pairs(logps, slice(2, 4))), weight[2:4])


def padding_never_matters(weighting: Weighting) -> None:
    logps = random_pairs()
    dirty = each_tensor(logps, lambda v: v if v.dtype == torch.bool else torch.where(logps.mask, v, float("nan")))
    assert_same(weighting(dirty), weighting(logps))


def no_gradient_passes(weighting: Weighting) -> None:
    assert not weighting(with_gradient(random_pairs())).requires_grad


def needs_are_stated(weighting: Weighting) -> None:
    bare = replace(random_pairs(), collision=None)
    if weighting.needs.collision:
        try:
            weighting(bare)
        except ValueError as error:
            assert "collision" in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs the collision probability, and runs without")
    else:
        assert_same(weighting(bare), weighting(random_pairs()))


@dataclass(frozen=True)
class Wrong(Weighting):
    """A weighting out of a rule."""

    rule: Callable[[PairLogProbs], torch.Tensor]

    def __call__(self, logps):
        return self.rule(logps)


LAWS = {
    weights_are_a_number_of_each_pair: Wrong(lambda logps: logps.policy.sum((1, 2)).softmax(0)),
    padding_never_matters: Wrong(lambda logps: logps.policy.detach().sum((1, 2)).exp()),
    no_gradient_passes: Wrong(lambda logps: logps.policy.sum((1, 2)).exp()),
    needs_are_stated: Wrong(
        lambda logps: (logps.collision if logps.collision is not None else logps.policy).sum((1, 2))
    ),
}
"""Each law and something that breaks it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("weighting", parts(Weighting), ids=repr)
def test_law(weighting: Weighting, law: Callable[[Weighting], None]) -> None:
    law(weighting)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Weighting], None], wrong: Weighting) -> None:
    with pytest.raises(AssertionError):
        law(wrong)


def collided(value: float) -> PairLogProbs:
    return replace(worked_pair(), collision=worked_pair().mask * value)


@pytest.mark.parametrize(("collision", "expected"), [(-1.25, -1.0), (-1.75, 0.0), (-1.7, -0.1), (-3.0, 0.0)])
def test_the_two_sides_are_multiplied_and_the_product_is_cut_at_one(collision: float, expected: float) -> None:
    """-2 and -1.5 per token: at -1.7 the sides are e^-0.3 and e^0.2, and only their product is cut."""
    weight = OnPolicy()(collided(collision)).item()
    assert weight == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-5)


def test_a_uniform_policy_s_responses_weigh_one() -> None:
    """Over v words lp = -log v and Σ π² = 1 / v: whatever it writes is as likely as what it writes on average."""
    mask = random_pairs().mask
    uniform = torch.full(mask.shape, -2.0)
    logps = PairLogProbs(policy=uniform, reference=None, mask=mask, collision=uniform)
    assert OnPolicy()(logps).tolist() == [1.0] * 6


def test_an_absent_side_counts_as_one() -> None:
    logps = collided(-1.25)
    mask = logps.mask.clone()
    mask[:, 1] = False
    assert OnPolicy()(replace(logps, mask=mask)).item() == pytest.approx(torch.tensor(-0.75).exp().item(), rel=1e-5)
