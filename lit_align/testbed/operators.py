"""Operators on policies over a finite set of responses, from which the optima of alignment objectives are built.

A policy is a tensor of positive probabilities that sum to 1 over the last axis, the responses; the axes before it are
prompts. Since the set is finite, optima are computed exactly and not estimated.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Policies: TypeAlias = Float[Tensor, "*prompt response"]
"""A probability or a reward for each response."""
Lengths: TypeAlias = Float[Tensor, "*#prompt response"]
"""Tokens of each response, per prompt or for all prompts."""

HALVINGS = 200
"""Bisection steps, more than float64 can resolve."""


def tilted(reference: Policies, reward: Policies, beta: float) -> Policies:
    """Return ``G_β(r; ρ)(y) ∝ ρ(y) exp(r(y) / β)``, the solution of ``max_π E_π[r] - β KL(π ‖ ρ)``.

    Args:
        reference: ρ, the policy that is tilted.
        reward: r, of each response.
        beta: inverse temperature.

    >>> half = torch.tensor([0.5, 0.5])
    >>> tilted(half, torch.tensor([math.log(3.0), 0.0]), beta=1.0)  # 3 to 1
    tensor([0.7500, 0.2500])
    """
    return torch.softmax(reference.log() + reward / beta, dim=-1)


def averaged(policy: Policies, lengths: Lengths, power: float = 1.0) -> Policies:
    """Return ``(Aπ)(y) ∝ π(y)^(1 / |y|^power)``, the policy of the averaged log-likelihoods.

    Paper: Grinsztajn et al. 2024, arXiv:2406.19188, with power 1; power 0 returns the policy unchanged.

    Args:
        policy: π.
        lengths: |y|, the tokens of each response.
        power: exponent of the length.

    >>> averaged(torch.tensor([0.8, 0.2]), torch.tensor([2.0, 1.0]))  # √0.8 to 0.2
    tensor([0.8173, 0.1827])
    """
    return torch.softmax(policy.log() / lengths**power, dim=-1)


def unaveraged(policy: Policies, lengths: Lengths, power: float = 1.0) -> Policies:
    """Return ``(A⁻¹ρ)(y) = (c ρ(y))^(|y|^power)`` with the c > 0 for which it sums to 1, the inverse of ``averaged``.

    The sum increases in c from 0 without bound, so c is unique; it is found by bisection.

    Args:
        policy: ρ.
        lengths: |y|, the tokens of each response.
        power: exponent of the length.

    >>> lengths = torch.tensor([2.0, 1.0])
    >>> unaveraged(averaged(torch.tensor([0.8, 0.2]), lengths), lengths)
    tensor([0.8000, 0.2000])
    """
    exponents = lengths.expand_as(policy) ** power
    log_policy = policy.log()
    high = -log_policy.amin(-1, keepdim=True)  # the least likely response alone has probability 1
    low = (-log_policy - math.log(policy.shape[-1]) / exponents).amin(-1, keepdim=True)  # none exceeds 1 / count
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        too_much = torch.logsumexp(exponents * (log_policy + middle), -1, keepdim=True) > 0
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return torch.softmax(exponents * (log_policy + (low + high) / 2), dim=-1)


def win_rate(reward: Policies, opponents: Policies) -> Policies:
    """Return ``P(y) = Σ_z μ(z) σ(r(y) - r(z))``, how often y is preferred to a sample of μ under Bradley–Terry.

    Args:
        reward: r, of each response.
        opponents: μ, the policy of the other response.

    >>> win_rate(torch.tensor([math.log(3.0), 0.0]), torch.tensor([0.5, 0.5]))  # (½ + ¾) / 2, (¼ + ½) / 2
    tensor([0.6250, 0.3750])
    """
    preferred = torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))
    return (preferred * opponents.unsqueeze(-2)).sum(-1)


def total_variation(first: Policies, second: Policies) -> Float[Tensor, "*prompt"]:
    """Return ``½ Σ_y |π(y) - ρ(y)|``, the largest difference in the probability of any set of responses.

    >>> total_variation(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5]))
    tensor(0.2500)
    """
    return (first - second).abs().sum(-1) / 2
