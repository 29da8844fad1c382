"""Metrics of rollouts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_align.metrics.rollouts import RolloutMetrics, pairs_of, same_group
from lit_align.online import KL, RLHF, Experience, LeaveOneOut
from lit_align.types import Rollout

MASK = torch.tensor([[True, True], [True, False], [True, True], [True, True]])


def experience(weight: torch.Tensor | None = None) -> Experience:
    """Two responses to each of two prompts."""
    policy = torch.tensor([[-1.0, -2.0], [-0.5, 0.0], [-1.0, -1.0], [-2.0, -2.0]])
    reference = policy - torch.tensor([[0.5, 0.5], [0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    score = torch.tensor([1.0, 3.0, 2.0, 2.0])
    group = torch.tensor([0, 0, 1, 1])
    rollout = Rollout(policy, MASK, score, group, torch.ones(4) if weight is None else weight, reference)
    return RLHF(KL(), 0.1, LeaveOneOut()).experience(rollout)


def computed(*experiences: Experience) -> dict[str, float]:
    metric = RolloutMetrics()
    for one in experiences:
        count = len(one.rollout.score)
        metric.update(one.rollout, torch.tensor([True, True, False, True])[:count], ["a", "a", "b", "c"][:count], one)
    return {name: float(value) for name, value in metric.compute().items()}


def test_by_hand() -> None:
    found = computed(experience())
    assert found["score"] == 2
    assert found["score/std"] == pytest.approx(0.5**0.5)
    assert found["length"] == pytest.approx(7 / 4)
    assert found["eos_rate"] == 0.75
    assert found["entropy"] == pytest.approx((3 + 0.5 + 2 + 4) / 4)
    assert found["entropy/per_token"] == pytest.approx(9.5 / 7)
    assert found["kl"] == pytest.approx((1 + 0 - 1 + 0) / 4)
    assert found["tie_rate"] == 0.5
    assert found["distinct"] == 0.75
    assert found["reward"] == pytest.approx(2.0)
    assert not any(name.startswith(("values", "loss", "update")) for name in found)


def test_rows_of_weight_zero_do_not_count() -> None:
    weight = torch.tensor([1.0, 1.0, 0.0, 0.0])
    found = computed(experience(weight))
    assert found["score"] == 2
    assert found["tie_rate"] == 0
    assert found["distinct"] == 0.5
    assert found["eos_rate"] == 1


def test_any_split_by_prompts_gives_the_same() -> None:
    whole = experience()
    halves = [
        RLHF(KL(), 0.1, LeaveOneOut()).experience(whole.rollout.rows(torch.tensor(rows))) for rows in ([0, 1], [2, 3])
    ]
    metric = RolloutMetrics()
    metric.update(halves[0].rollout, torch.tensor([True, True]), ["a", "a"], halves[0])
    metric.update(halves[1].rollout, torch.tensor([False, True]), ["b", "c"], halves[1])
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(computed(whole))


def test_pairs_are_of_one_prompt() -> None:
    first, second = same_group(torch.tensor([0, 1, 0, 1]))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (1, 3)]
    pairs = pairs_of(experience().rollout)
    assert pairs.preferences.score_gap.tolist() == [-2, 0]
    assert pairs.preferences.log_prob_gap.tolist() == [-2.5, 2]


def test_one_response_per_prompt_has_no_pairs() -> None:
    rollout = experience().rollout.rows(torch.tensor([0, 2]))
    found = RolloutMetrics()
    found.update(
        rollout, torch.ones(2, dtype=torch.bool), ["a", "b"], Experience(rollout, torch.zeros(2, 2), torch.zeros(2, 2))
    )
    assert "tie_rate" not in found.compute()
    assert len(pairs_of(rollout).weight) == 0


def valued(rows: list[int]) -> Experience:
    """Returns 1, 2, 3, 6 of one token each, and the predicted values."""
    returns, values = torch.tensor([[1.0], [2.0], [3.0], [6.0]]), torch.tensor([[1.0], [3.0], [3.0], [4.0]])
    whole = experience().rollout
    one = torch.tensor([[True]]).expand(4, 1)
    rollout = replace(whole, mask=one, policy=whole.policy[:, :1], reference=None, values=values)
    flat = torch.zeros(4, 1)
    at = torch.tensor(rows)
    return Experience(rollout.rows(at), flat[at], flat[at], returns[at])


def test_what_values_explain_does_not_depend_on_how_the_returns_came() -> None:
    """Mean square of what they miss 5 / 4, variance of the returns 14 / 4; within the halves it is 0.25 and 2.25."""
    expected = pytest.approx(1 - 5 / 14)
    assert computed(valued([0, 1, 2, 3]))["values/explained"] == expected
    assert computed(valued([0, 1]), valued([2, 3]))["values/explained"] == expected
    assert "values/explained" not in computed(valued([1]))
