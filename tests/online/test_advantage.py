"""Advantages by hand, and their invariances."""

from __future__ import annotations

import pytest
import torch

from lit_align.online import GAE, Advantage, GreedyBaseline, GroupNormalised, LeaveOneOut
from lit_align.types import Rollout

LEAVES: list[Advantage] = [GAE(), GAE(0.9, 0.5), LeaveOneOut(), GroupNormalised(), GreedyBaseline()]
MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [True, True, False]])
REWARDS = torch.where(MASK, torch.tensor([[0.1, -0.2, 1.0], [0.3, 2.0, 9.0], [0.5, 9.0, 9.0], [0.0, -1.0, 9.0]]), 0.0)
VALUES = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.1, 9.0], [0.6, 9.0, 9.0], [0.7, 0.2, 9.0]])


def rollout(mask: torch.Tensor = MASK, values: torch.Tensor = VALUES) -> Rollout:
    count = len(mask)
    return Rollout(
        policy=torch.zeros(mask.shape),
        mask=mask,
        score=torch.ones(count),
        group=torch.tensor([4, 4, 9, 9])[:count],
        weight=torch.ones(count),
        values=values,
        greedy=torch.tensor([0.5, 0.5, -0.5, -0.5])[:count],
    )


def test_gae_by_the_sum_over_later_errors() -> None:
    """Σ_k (γλ)^k δ_{t+k}, summed straight from the definition."""
    found = GAE(0.9, 0.5)(REWARDS, rollout())
    for row in range(len(MASK)):
        count = int(MASK[row].sum())
        values = [*VALUES[row, :count].tolist(), 0.0]
        errors = [float(REWARDS[row, t]) + 0.9 * values[t + 1] - values[t] for t in range(count)]
        for t in range(count):
            wanted = sum((0.9 * 0.5) ** (k - t) * errors[k] for k in range(t, count))
            assert float(found[row, t]) == pytest.approx(wanted, abs=1e-6)


def test_gae_that_trusts_the_rewards_is_the_return_less_the_value() -> None:
    found = GAE(1.0, 1.0)(REWARDS, rollout())
    later = REWARDS.flip(1).cumsum(1).flip(1)
    assert torch.allclose(found, torch.where(MASK, later - VALUES, 0.0), atol=1e-6)


def test_leave_one_out_by_hand() -> None:
    """Returns 0.9, 2.3 | 0.5, -1: each against the other of its group."""
    found = LeaveOneOut()(REWARDS, rollout())[:, 0]
    assert found.tolist() == pytest.approx([-1.4, 1.4, 1.5, -1.5], abs=1e-6)


def test_group_normalised_by_hand() -> None:
    """Two returns a distance d apart have the deviation d / √2, so each is ± √½ from the mean."""
    found = GroupNormalised(1e-9)(REWARDS, rollout())[:, 0]
    assert found.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-5)


def test_equal_returns_teach_nothing() -> None:
    same = torch.where(MASK, 1.0 / MASK.sum(-1, keepdim=True), 0.0)
    assert float(GroupNormalised()(same, rollout()).abs().max()) < 1e-3
    assert float(LeaveOneOut()(same, rollout()).abs().max()) < 1e-6


@pytest.mark.parametrize("advantage", LEAVES, ids=str)
def test_padding_never_matters(advantage: Advantage) -> None:
    wide = torch.cat([MASK, torch.zeros(4, 2, dtype=torch.bool)], 1)
    rewards = torch.cat([REWARDS, torch.zeros(4, 2)], 1)
    values = torch.cat([torch.where(MASK, VALUES, torch.nan), torch.full((4, 2), torch.nan)], 1)
    narrow, padded = advantage(REWARDS, rollout()), advantage(rewards, rollout(wide, values))
    assert torch.allclose(narrow, padded[:, :3])
    assert float(padded[:, 3:].abs().max()) == 0
    assert float(narrow[~MASK].abs().max()) == 0


@pytest.mark.parametrize("advantage", [LeaveOneOut(), GroupNormalised()], ids=str)
def test_groups_do_not_see_each_other(advantage: Advantage) -> None:
    alone = Rollout(torch.zeros(2, 3), MASK[:2], torch.ones(2), torch.zeros(2).long(), torch.ones(2))
    assert torch.allclose(advantage(REWARDS, rollout())[:2], advantage(REWARDS[:2], alone), atol=1e-6)


@pytest.mark.parametrize(
    ("advantage", "message"),
    [(GAE(), "values"), (GreedyBaseline(), "most likely"), (LeaveOneOut(), "found 1"), (GroupNormalised(), "found 1")],
    ids=str,
)
def test_what_is_missing_is_named(advantage: Advantage, message: str) -> None:
    bare = Rollout(torch.zeros(2, 3), MASK[:2], torch.ones(2), torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(ValueError, match=message):
        advantage(REWARDS[:2], bare)


@pytest.mark.parametrize("advantage", [LeaveOneOut(), GroupNormalised()], ids=str)
@pytest.mark.parametrize("reward", [12345.678, 1000000.3, 1e7 / 3, -3e8 / 7, 1e30])
@pytest.mark.parametrize("count", [3, 5, 7])
def test_equal_rewards_of_any_size_have_no_advantage(advantage: Advantage, reward: float, count: int) -> None:
    mask, ones = torch.ones(count, 2, dtype=torch.bool), torch.ones(count)
    rewards = torch.tensor([[-0.1, reward]]).repeat(count, 1)
    assert float(advantage(rewards, Rollout(rewards, mask, ones, torch.zeros(count).long(), ones)).abs().max()) == 0.0
