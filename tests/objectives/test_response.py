"""Anchors compared with numbers by hand, and objectives on single responses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_align.objectives import (
    BinaryLogistic,
    Entropy,
    ForwardKL,
    Mean,
    MismatchedMean,
    NoiseContrast,
    ResponseObjective,
    RunningMean,
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


def mismatched(policy: list[list[float]], present: list[list[bool]] | None = None) -> PairLogProbs:
    """One token a side, with a reference of 0: the log-ratios are what is given."""
    values = torch.tensor(policy)[..., None]
    mask = torch.tensor(present)[..., None] if present else torch.ones_like(values, dtype=torch.bool)
    return PairLogProbs(policy=values, reference=torch.zeros_like(values), mask=mask)


def anchored(other: PairLogProbs) -> list[float]:
    logps = replace(random_pairs(pairs=len(other.policy)), mismatched=other)
    return MismatchedMean()(logps, bco().log_ratio).tolist()


def test_the_mismatched_mean_is_over_the_present_sides_of_all_pairs() -> None:
    assert anchored(mismatched([[3.0, -1.0], [4.0, 2.0]])) == pytest.approx([2.0, 2.0])
    present = [[True, False], [True, False]]
    assert anchored(mismatched([[3.0, -1.0], [4.0, 2.0]], present)) == pytest.approx([3.5, 3.5])


def test_the_mean_is_clamped_and_not_each_part_of_it() -> None:
    assert anchored(mismatched([[3.0, -9.0], [4.0, 2.0]])) == [0.0, 0.0]
    assert anchored(mismatched([[3.0, -1.0]], [[False, False]])) == [0.0]


def test_no_gradient_passes_the_anchor() -> None:
    logps = with_gradient(random_pairs())
    assert logps.mismatched is not None
    other = with_gradient(logps.mismatched)
    loss = kto()(replace(logps, mismatched=other)).loss
    assert (gradient(loss, other.policy) == 0).all()


def test_kto_by_hand() -> None:
    """r is 5 and -2, z is (4 + 2) / 2 = 3: 1.5 σ(-0.1 (5 - 3)) + 0.5 σ(0.1 (-2 - 3))."""
    logps = replace(worked_pair(), mismatched=mismatched([[4.0, 2.0]]))
    outcome = kto(0.1, chosen_weight=1.5, rejected_weight=0.5)(logps)
    assert outcome.loss.item() == pytest.approx(1.5 * 0.4501660 + 0.5 * 0.3775407, abs=1e-6)
    torch.testing.assert_close(outcome.rewards, torch.tensor([[0.5, -0.2]]))


def test_the_reference_point_is_that_of_the_whole_step() -> None:
    """Micro-batches by themselves would clamp and average apart: (2, 0) instead of 0.5 for both."""
    other = mismatched([[3.0, 1.0], [-1.0, -1.0]])
    assert anchored(other) == pytest.approx([0.5, 0.5])
    assert anchored(mismatched([[3.0, 1.0]])) + anchored(mismatched([[-1.0, -1.0]])) == [2.0, 0.0]


def test_bco_starts_without_a_shift() -> None:
    assert torch.equal(bco()(random_pairs()).loss, bco_unshifted()(random_pairs()).loss)


def test_bco_over_three_steps() -> None:
    """The mean of the steps' means so far, each step counting once: 0, then 1.5, then (1.5 + 4.5) / 2 = 3."""
    objective = bco(0.1)
    state = {name: torch.tensor(value, dtype=torch.float64) for name, value in objective.initial_state.items()}
    first = objective(replace(worked_pair(), state=state))
    assert first.loss.item() == pytest.approx(1.0722159, abs=1e-6)  # -log σ(0.5) - log σ(0.2)
    assert first.observed["anchor"].item() == pytest.approx(1.5)
    state = objective.advance_state(state, {"anchor": first.observed["anchor"].double().mean()})
    second = objective(replace(worked_pair(), state=state))
    assert second.loss.item() == pytest.approx(2 * 0.5333822, abs=1e-6)  # -2 log σ(0.35)
    state = objective.advance_state(state, {"anchor": torch.tensor(4.5, dtype=torch.float64)})
    assert (state["anchor"].item(), state["steps"].item()) == pytest.approx((3.0, 2.0))


def test_a_row_of_one_side_is_observed_by_that_side() -> None:
    scores = torch.tensor([[4.0, -2.0], [4.0, 0.0], [0.0, 0.0]])
    present = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert RunningMean().observed(scores, present)["anchor"].tolist() == [1.0, 4.0, 0.0]


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
