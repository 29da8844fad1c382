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
    apo_down,
    apo_zero,
    bco,
    bco_unshifted,
    kto,
    nca,
    sppo,
)
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs

from ..laws.cases import gradient, random_pairs, with_gradient


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
    assert (objective.needs.reference, objective.needs.prompted, objective.needs.rejected) == (True, False, True)
    assert not replace(objective, regularizer=Entropy()).needs.reference


def test_the_loss_is_the_only_part_without_a_default() -> None:
    with pytest.raises(TypeError, match="loss"):
        ResponseObjective()  # type: ignore[call-arg]
    assert ResponseObjective(NoiseContrast()) == nca()
    assert hash(ResponseObjective(BinaryLogistic(0.01))) == hash(bco_unshifted())


UNPAIRED = [nca(0.1), bco(0.1), sppo(0.1), apo_zero(0.1), kto(0.1, 1.5, 0.5), replace(bco(0.1), averaging=Mean())]


def alone(logps: PairLogProbs, side: int) -> PairLogProbs:
    """The rows with one side only, as unpaired data has them."""
    mask = logps.mask.clone()
    mask[:, 1 - side] = False
    return replace(logps, mask=mask)


@pytest.mark.parametrize("objective", UNPAIRED, ids=repr)
def test_a_pair_s_loss_is_the_sum_of_what_its_sides_have_as_unpaired_rows(objective: ResponseObjective) -> None:
    """So the mean over pairs is twice the mean over rows; the mismatched responses, and so z, are the same."""
    logps = random_pairs()
    losses = [objective(alone(logps, side)).loss for side in (0, 1)]
    torch.testing.assert_close(losses[0] + losses[1], objective(logps).loss)


@pytest.mark.parametrize("objective", UNPAIRED, ids=repr)
def test_an_absent_side_has_no_reward_no_loss_and_no_gradient(objective: ResponseObjective) -> None:
    assert objective.needs.unpaired
    logps = with_gradient(alone(random_pairs(), 1))
    outcome = objective(logps)
    assert (outcome.rewards[:, 0] == 0).all()
    slope = gradient(outcome.loss, logps.policy)
    assert slope.isfinite().all()
    assert (slope[:, 0] == 0).all()
    nobody = replace(logps, mask=torch.zeros_like(logps.mask))
    assert (objective(nobody).loss == 0).all()


def test_what_looks_at_both_sides_takes_pairs_only() -> None:
    assert not apo_down().needs.unpaired
    assert not replace(nca(), averaging=SharedLength(0.5)).needs.unpaired


def test_a_mean_over_nothing_is_not_hidden_where_pairs_are_needed() -> None:
    objective = replace(apo_down(), averaging=Mean())
    assert objective(alone(random_pairs(), 0)).loss.isnan().all()
