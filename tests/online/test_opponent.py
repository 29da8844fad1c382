"""What RLHF learns from wins against an opponent, by enumeration of all responses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_align.objectives.regularizer import KL
from lit_align.online import Problem
from tests.online.tree import MASK, REFERENCE, logits, problem, tokens, whole

BETA = 0.5
WINS = torch.sigmoid(torch.randn(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(2))
"""A preference without any score behind it: the probability that the response of the row wins."""
WINS = torch.where(torch.ones(7, 7).triu(1).bool(), WINS, 1 - WINS.T).fill_diagonal_(0.5)


def against(opponent: Tensor) -> Problem:
    """The problem whose score is the probability of a win against a distribution over the responses."""
    return replace(problem(KL(), BETA), score=WINS @ opponent)


def mixture(policy: Tensor, share: float) -> Tensor:
    """Whole responses of a policy mixed token by token, ``π^(1-s) π_ref^s`` at each."""
    return whole((1 - share) * policy + share * logits(7)).exp()


def fixed_point(share: float) -> Tensor:
    """Log-probabilities that are best against the mixture of themselves with the reference, by damped iteration."""
    rows = logits(7)
    for _ in range(100):
        best = against(mixture(rows.log_softmax(-1), share)).optimum()
        rows = 0.7 * rows.log_softmax(-1) + 0.3 * _as_rows(best)
    return rows.log_softmax(-1)


def _as_rows(log_probs: Tensor) -> Tensor:
    """Turn a distribution over whole responses into log-probabilities of tokens, given those before."""
    first = torch.stack([log_probs[0], log_probs[1:4].logsumexp(0), log_probs[4:].logsumexp(0)])
    return torch.stack([first, log_probs[1:4] - first[1], log_probs[4:] - first[2]])


def value(policy: Tensor, opponent: Tensor) -> float:
    """P(policy wins) - β KL(policy ‖ reference)."""
    kl = (policy.exp() * (policy - REFERENCE.where(MASK, 0.0).sum(-1))).sum()
    return float(policy.exp() @ WINS @ opponent - BETA * kl)


def test_against_itself_the_fixed_point_is_the_equilibrium_of_the_regularised_game() -> None:
    """No other policy gains by playing against it; with a share of the reference in the opponent, one does."""
    for share, gains in ((0.0, False), (1.0, True)):
        policy = fixed_point(share)
        own = whole(policy)
        closed = REFERENCE.where(MASK, 0.0).sum(-1) + WINS @ mixture(policy, share) / BETA
        torch.testing.assert_close(own, closed.log_softmax(-1), atol=1e-9, rtol=0)
        best = against(own.exp()).optimum()
        assert (value(best, own.exp()) - value(own, own.exp()) > 1e-6) == gains


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_gradient_is_that_of_trl_s_nash_md(share: float) -> None:
    """TRL: β (log π - log π_ref) log π - (P - 1/2) log π with the first factors fixed; in expectation the same."""
    rows = logits(3).requires_grad_()
    wins = WINS @ mixture(rows.detach().log_softmax(-1), share)
    own = tokens(rows)
    ratio = torch.where(MASK, own - REFERENCE, 0.0).detach().sum(-1)
    probability = own.sum(-1).exp().detach()
    loss = (probability * (BETA * ratio * own.sum(-1) - (wins - 0.5) * own.sum(-1))).sum()
    (wanted,) = torch.autograd.grad(loss, rows)
    target = against(mixture(rows.detach().log_softmax(-1), share))
    (gradient,) = torch.autograd.grad(-target.value(tokens(rows)), rows)
    torch.testing.assert_close(gradient, wanted, atol=1e-12, rtol=0)
