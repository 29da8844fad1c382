from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lit_align.objectives import DynamicBeta, Mean, beta_dpo, dpo, sr_dpo
from lit_align.objectives.dynamic_beta import sample_pairs
from lit_align.types import PairLogProbs

from ..laws.cases import gradient, random_pairs, with_gradient

close = torch.testing.assert_close


def pairs(margins: list[float], **state: float) -> PairLogProbs:
    policy = torch.tensor(margins, dtype=torch.float64)[:, None, None] * torch.tensor([[1.0], [0.0]])
    mask = torch.ones_like(policy, dtype=torch.bool)
    named = {name: torch.tensor(value, dtype=torch.float64) for name, value in state.items()}
    seeds = torch.arange(len(margins))
    return PairLogProbs(policy - 20, torch.full_like(policy, -20.0), mask, pair_seed=seeds, state=named)


# M = 0.9 · 2 + 0.1 · 4 = 2.2, S = 0.9 · 1 + 0.1 · 4.0824829 = 1.3082483
FOUR = pairs([1.0, 2.0, 3.0, 10.0], margin=2.0, deviation=1.0)


def test_beta_by_hand() -> None:
    outcome = beta_dpo(0.1, 0.6, dropped=0.0)(FOUR)  # β = 0.1 (1 + 0.6 (4 - 2.2))
    margins = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    close(outcome.loss, -F.logsigmoid(0.208 * margins))
    close(outcome.rewards, 0.208 * torch.stack([margins, 0 * margins], -1))
    means = {name: value.mean() for name, value in outcome.observed.items()}
    moved = beta_dpo().advance_state(dict.fromkeys(beta_dpo().initial_state, torch.tensor(0.0)), means)
    assert {name: pytest.approx(value.item()) for name, value in moved.items()} == {
        "margin": 2.2,
        "deviation": 1.3082483,
        "beta": 0.208,
    }


def test_the_unusual_pair_is_left_out() -> None:
    """Ten is six deviations away; of the others β = 0.1 (1 + 0.6 (2 - 2.2)), and their mean is the mean over all."""
    outcome = beta_dpo(0.1, 0.6, dropped=0.25)(FOUR)
    kept = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert outcome.loss[3] == 0
    close(outcome.loss.mean(), -F.logsigmoid(0.088 * kept).mean())


def test_beta_stays_positive() -> None:
    outcome = beta_dpo(0.1, 0.6, dropped=0.0)(pairs([-90.0, -110.0], margin=0.0, deviation=1.0))
    assert outcome.observed["beta"][0] == 1e-3


def test_neither_beta_nor_the_choice_passes_a_gradient() -> None:
    logps = with_gradient(FOUR)
    outcome = beta_dpo(0.1, 0.6, dropped=0.25)(logps)
    slope = outcome.observed["share"] * 0.088 * torch.sigmoid(-0.088 * (logps.policy[:, 0, 0] + 20))
    close(gradient(outcome.loss, logps.policy)[:, 0, 0], -slope)
    close(beta_dpo(0.1, 0.6, dropped=0.25).slope(logps, outcome), slope)


def test_it_works_with_other_parts_and_soft_labels() -> None:
    logps = replace(random_pairs(), preference_probability=torch.full((6,), 0.8))
    for inner in (sr_dpo(), replace(dpo(2.0), averaging=Mean())):
        fixed = DynamicBeta(inner, sensitivity=0.0, dropped=0.0)
        outcome = fixed(logps)
        close(outcome.loss, inner(logps).loss)
        close(fixed.slope(logps, outcome), inner.slope(logps, inner(logps)))


def test_pairs_are_sampled_in_proportion_to_their_weights() -> None:
    weights = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64).log()
    counts = sum((sample_pairs(weights, 1, torch.arange(3) + 3 * draw) for draw in range(800)), start=torch.zeros(3))
    assert isinstance(counts, Tensor)
    close(counts / 800, torch.tensor([0.25, 0.5, 0.25]), atol=0.04, rtol=0)
