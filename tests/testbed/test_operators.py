"""Operators on policies over finite sets follow their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_align.testbed.operators import averaged, tilted, total_variation, unaveraged, win_rate

LENGTHS = torch.tensor([1.0, 3.0, 40.0, 7.0, 2.0], dtype=torch.float64)
close = torch.testing.assert_close


def policies(seed: int, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.softmax(scale * torch.randn(3, 5, generator=draw, dtype=torch.float64), -1)


def rewards(seed: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_inverse_of_averaging_undoes_it(power: float, scale: float) -> None:
    policy = policies(0, scale)
    there = averaged(policy, LENGTHS, power)
    close(there.sum(-1), torch.ones(3, dtype=torch.float64))
    close(unaveraged(there, LENGTHS, power), policy, rtol=1e-6, atol=1e-12)
    close(averaged(unaveraged(policy, LENGTHS, power), LENGTHS, power), policy, rtol=1e-6, atol=1e-12)


def test_the_other_order_of_the_inverse_is_wrong() -> None:
    policy = policies(0)
    assert float(total_variation(unaveraged(policy, 1 / LENGTHS), unaveraged(policy, LENGTHS)).min()) > 0.05


def test_averaging_at_equal_lengths_is_a_temperature() -> None:
    policy = policies(1)
    close(averaged(policy, torch.full((5,), 4.0)), torch.softmax(policy.log() / 4, -1))
    close(unaveraged(policy, torch.full((5,), 4.0)), torch.softmax(policy.log() * 4, -1))


def test_tilting_divides_the_odds_as_the_reward_says() -> None:
    reference, reward = policies(2), rewards(0)
    log_ratio = tilted(reference, reward, 0.3).log() - reference.log()
    close(0.3 * (log_ratio[:, 0] - log_ratio[:, 4]), reward[:, 0] - reward[:, 4])


def test_nothing_near_the_tilted_policy_is_better() -> None:
    reference, reward, beta = policies(3), rewards(1), 0.4

    def value(policy: Tensor) -> Tensor:
        return (policy * (reward - beta * (policy.log() - reference.log()))).sum(-1)

    best = tilted(reference, reward, beta)
    for seed in range(20):
        nudge = 0.1 * rewards(10 + seed)
        assert (value(torch.softmax(best.log() + nudge, -1)) < value(best)).all()
    close(value(best), beta * (reference * (reward / beta).exp()).sum(-1).log())


def test_win_rates_of_a_policy_against_itself_average_to_a_half() -> None:
    drawn, reward = policies(4), rewards(2)
    close((drawn * win_rate(reward, drawn)).sum(-1), torch.full((3,), 0.5, dtype=torch.float64))


def test_a_constant_reward_wins_half_the_time() -> None:
    close(win_rate(torch.zeros(3, 5), policies(5).float()), torch.full((3, 5), 0.5))


def test_total_variation_is_the_largest_difference_of_any_set() -> None:
    first, second = policies(6), policies(7)
    gained = (first - second).clamp(min=0).sum(-1)  # the set of responses that the first likes better
    close(total_variation(first, second), gained)
    assert float(total_variation(first, first).max()) == 0
