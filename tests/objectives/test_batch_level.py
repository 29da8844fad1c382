from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lit_align.objectives import Entropy, ForwardKL, Mean, RankedMargins, RankedResponses, aot, aot_unpaired, cdpo, dpo
from lit_align.objectives.batch_level import at_the_rank_of
from lit_align.types import PairLogProbs

from ..laws.cases import random_pairs, some_pairs, with_gradient

close = torch.testing.assert_close


def one_token(policy: list[list[float]], reference: list[list[float]]) -> PairLogProbs:
    values = torch.tensor(policy)[..., None]
    mask = torch.ones_like(values, dtype=torch.bool)
    return PairLogProbs(policy=values, reference=torch.tensor(reference)[..., None], mask=mask)


# Margins of the policy: 4, -1, 2; of the reference: 1, 0, -2. Sorted: -1, 2, 4 against -2, 0, 1: 1, 2, 3.
THREE = one_token([[-1.0, -5.0], [-3.0, -2.0], [-2.0, -4.0]], [[-2.0, -3.0], [-1.0, -1.0], [-4.0, -2.0]])


def test_sorted_margins_by_hand() -> None:
    outcome = aot(beta=1.0)(THREE)
    assert outcome.margin.tolist() == [3.0, 1.0, 2.0]
    close(outcome.loss, -F.logsigmoid(torch.tensor([3.0, 1.0, 2.0])))
    close(aot(beta=1.0).slope(THREE, outcome), torch.sigmoid(-torch.tensor([3.0, 1.0, 2.0])))
    close(outcome.rewards, torch.tensor([[1.0, -2.0], [-2.0, -1.0], [2.0, -2.0]]))


def test_sorted_responses_by_hand() -> None:
    """Chosen 1, -2, 2 against rejected -2, -1, -2: sorted -2, 1, 2 against -2, -2, -1, which is 0, 3, 3."""
    outcome = aot_unpaired(beta=1.0)(THREE)
    assert outcome.margin.tolist() == [3.0, 0.0, 3.0]


def test_the_sum_is_that_of_sorted_tensors() -> None:
    """As the loss is usually written: everything sorted, then the mean."""
    logps = random_pairs(pairs=64, dtype=torch.float64)
    assert logps.reference is not None
    policy = torch.where(logps.mask, logps.policy, 0.0).sum(-1)
    reference = torch.where(logps.mask, logps.reference, 0.0).sum(-1)
    margins = (policy[:, 0] - policy[:, 1]).sort().values - (reference[:, 0] - reference[:, 1]).sort().values
    scores = (policy - reference).sort(0).values
    for objective, delta in ((aot(0.1, 0.2), margins), (aot_unpaired(0.1, 0.2), scores[:, 0] - scores[:, 1])):
        expected = -0.8 * F.logsigmoid(0.1 * delta) - 0.2 * F.logsigmoid(-0.1 * delta)
        close(objective(logps).loss.mean(), expected.mean())


def test_one_pair_has_one_rank() -> None:
    one = some_pairs(random_pairs(), slice(2, 3))
    for objective in (aot(0.1, 0.1), aot_unpaired(0.1, 0.1)):
        close(objective(one).loss, cdpo(0.1, 0.1)(one).loss)


def test_ties_leave_the_sum_alone() -> None:
    tied = one_token([[-1.0, -2.0], [-2.0, -3.0], [-1.0, -5.0]], [[-1.0, -1.0], [-3.0, -1.0], [-1.0, -4.0]])
    for objective in (aot(1.0), aot_unpaired(1.0)):
        losses = [objective(some_pairs(tied, torch.tensor(order))).loss for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0])]
        for loss in losses[1:]:
            close(loss.sum(), losses[0].sum())
        assert torch.equal(objective(tied).loss, losses[0])


def test_the_gradient_is_that_of_each_policy_margin_at_its_rank() -> None:
    logps = with_gradient(THREE)
    aot(beta=1.0)(logps).loss.sum().backward()
    weight = torch.sigmoid(-torch.tensor([3.0, 1.0, 2.0]))
    assert logps.policy.grad is not None
    close(logps.policy.grad[..., 0], torch.stack([-weight, weight], -1))


def test_the_gradient_reaches_the_rejected_response_of_that_rank() -> None:
    """Its chosen side is the second of three, so pair 0 pushes down pair 2's rejected side, the second in order."""
    logps = with_gradient(THREE)
    aot_unpaired(beta=1.0)(logps).loss[0].backward()
    assert logps.policy.grad is not None
    assert logps.policy.grad[:, 1, 0].nonzero().flatten().tolist() == [2]


def test_the_parts_are_free() -> None:
    logps = random_pairs(dtype=torch.float64)
    free = replace(aot(2.0), regularizer=Entropy(), averaging=Mean())
    margin = Mean()(logps.policy, logps.mask)
    close(free(logps).margin, margin[:, 0] - margin[:, 1])  # no reference: its quantiles are 0
    assert not free.needs.reference
    assert not replace(aot_unpaired(), regularizer=Entropy()).needs.reference
    bent = replace(aot_unpaired(), divergence=ForwardKL())(logps).rewards
    close(bent, 0.1 * (1 - (-dpo().log_ratio(logps)).exp()))


def test_the_same_rank_for_every_permutation() -> None:
    values, others = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([7.0, 5.0, 6.0])
    assert at_the_rank_of(values, others).tolist() == [6.0, 7.0, 5.0]


@pytest.mark.parametrize("leaf", [RankedMargins, RankedResponses])
def test_rows_keep_both_sides(leaf: type) -> None:
    assert leaf().needs.batch_level
    assert not leaf().needs.unpaired
    assert not leaf().needs.columns
