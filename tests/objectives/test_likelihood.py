from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_align.objectives import SFT, DownSampled, Mean, SharedLength, Sum
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs


def chosen_side(logps: PairLogProbs) -> PairLogProbs:
    return PairLogProbs(policy=logps.policy[:, :1], reference=None, mask=logps.mask[:, :1])


def test_golden() -> None:
    assert SFT()(worked_pair()).loss.item() == pytest.approx(2.0)
    assert SFT(Sum())(worked_pair()).loss.item() == pytest.approx(20.0)


def test_the_rejected_side_may_be_absent_and_never_matters() -> None:
    alone, both = SFT()(chosen_side(worked_pair())), SFT()(worked_pair())
    assert torch.equal(alone.loss, both.loss)
    assert alone.rewards.shape == (1, 1)
    assert torch.equal(alone.rewards, both.rewards[:, :1])


def test_the_rejected_side_gets_no_gradient() -> None:
    policy = worked_pair().policy.requires_grad_()
    SFT()(replace(worked_pair(), policy=policy)).loss.sum().backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad[0, 0, :10], torch.full((10,), -0.1))
    assert (policy.grad[:, 1] == 0).all()


def test_needs_and_what_is_absent() -> None:
    objective, outcome = SFT(), SFT()(worked_pair())
    needs = (objective.needs.reference, objective.needs.prompted, objective.needs.rejected)
    assert needs == (False, False, False)
    assert outcome.margin is outcome.offset is outcome.prompted_margin is None


def test_the_other_side_is_there_if_the_averaging_looks_at_its_length() -> None:
    """Else training, which leaves out what is not needed, would average other than validation does."""
    assert [SFT(part).needs.rejected for part in (Mean(), Sum(), SharedLength(0.5), DownSampled())] == [
        *(False, False),
        *(True, True),
    ]
