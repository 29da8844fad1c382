from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_align.objectives import (
    BinaryLogistic,
    Entropy,
    ForwardKL,
    Mean,
    NoiseContrast,
    ResponseObjective,
    SharedLength,
    bco,
    nca,
)
from lit_align.objectives.examples import worked_pair


def test_the_outcome_of_the_worked_pair() -> None:
    outcome = bco(beta=0.1)(worked_pair())
    torch.testing.assert_close(outcome.rewards, torch.tensor([[0.5, -0.2]]))
    assert outcome.margin is outcome.offset is outcome.prompted_margin is None
    assert not outcome.terms


def test_the_other_axes_are_those_of_margins() -> None:
    averaged = replace(bco(beta=0.1), averaging=Mean())(worked_pair())
    torch.testing.assert_close(averaged.rewards, torch.tensor([[0.05, -0.005]]))
    shared = replace(bco(beta=0.1), averaging=SharedLength(0.0))(worked_pair())
    torch.testing.assert_close(shared.rewards, torch.tensor([[0.5, -0.05]]))
    free = replace(bco(beta=0.1), regularizer=Entropy())(worked_pair())
    torch.testing.assert_close(free.rewards, torch.tensor([[-2.0, -6.0]]))
    forward = replace(bco(beta=0.1), divergence=ForwardKL())(worked_pair()).rewards
    torch.testing.assert_close(forward, 0.1 * (1 - torch.tensor([[-5.0, 2.0]]).exp()))


def test_needs_are_those_of_the_parts() -> None:
    objective = nca()
    assert (objective.needs_reference, objective.needs_prompted, objective.needs_rejected) == (True, False, True)
    assert not replace(objective, regularizer=Entropy()).needs_reference


def test_the_loss_is_the_only_part_without_a_default() -> None:
    with pytest.raises(TypeError, match="loss"):
        ResponseObjective()  # type: ignore[call-arg]
    assert ResponseObjective(NoiseContrast()) == nca()
    assert hash(ResponseObjective(BinaryLogistic())) == hash(bco())
