"""Optimum, value and gradient of the regularised problem on a set of responses that can be listed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from jaxtyping import Float
from torch import Tensor

from lit_align.objectives.regularizer import Regularizer
from lit_align.online.length import LengthControl, NoLengthControl
from lit_align.types import RolloutMask, RolloutScores, RolloutTokens

Listed: TypeAlias = Float[Tensor, " rollout"]
"""A value per response of the whole set."""

BISECTIONS = 100
"""Steps of a bisection, more than float64 can resolve."""


@final
@dataclass(frozen=True)
class Problem:
    """``max_π Σ_y π(y) [r(y) - β Σ_t penalty_t(y)]`` over all distributions on a list of responses to one prompt.

    Args:
        regularizer: the penalty of each token.
        beta: weight β of the penalty.
        score: r of each response.
        mask: true on the tokens of each response.
        reference: log-probabilities of its tokens under the reference; None for a regularizer that needs none.
        length: changes the penalties by position or length.
    """

    regularizer: Regularizer
    beta: float
    score: RolloutScores
    mask: RolloutMask
    reference: RolloutTokens | None = None
    length: LengthControl = NoLengthControl()

    def optimum(self) -> Listed:
        """Return the log-probabilities of the optimum: ``r / β - Σ_t penalty_t`` at ``log π = 0``, normalised.

        Every penalty here is log π less something that does not depend on the policy, and the penalty at log π = 0 is
        minus that something, so the optimum is ``softmax(r)`` for `Entropy` at β = 1, ``π_ref exp(r / β)`` for `KL`,
        and the same against the masked reference for `ConditionalMatching`. Where penalties are divided by n, it is
        where no response is better than another: ``log π = n (r / β - mean penalty + c)``, normalised by c.

        >>> from lit_align.objectives.regularizer import KL, Entropy
        >>> score, reference = torch.tensor([51.0, 49.0]).log(), torch.tensor([[0.99], [0.01]]).log()
        >>> mask = torch.ones(2, 1, dtype=torch.bool)
        >>> Problem(Entropy(), 1.0, score, mask).optimum().exp()
        tensor([0.5100, 0.4900])
        >>> Problem(KL(), 0.1, score, mask, reference).optimum().exp()  # 0.99 · 51^10 against 0.01 · 49^10
        tensor([0.9933, 0.0067])
        """
        zero = torch.zeros_like(self.mask, dtype=self.score.dtype)
        apart = self.score / self.beta - self._penalty(zero)
        if not self.length.power:
            return apart.log_softmax(-1)
        return _normalised(apart, self.mask.sum(-1) ** self.length.power)

    def value(self, tokens: RolloutTokens) -> Tensor:
        """Return the objective of a policy; its gradient is the exact policy gradient, of penalties that are fixed.

        Args:
            tokens: log-probabilities of the tokens of each response under the policy.
        """
        whole = torch.where(self.mask, tokens, 0.0).sum(-1)
        return (whole.exp() * (self.score - self.beta * self._penalty(tokens).detach())).sum()

    def _penalty(self, tokens: RolloutTokens) -> RolloutScores:
        penalty = self.regularizer(tokens, self.reference)
        return torch.where(self.mask, self.length(penalty, tokens, self.reference, self.mask), 0.0).sum(-1)


def _normalised(apart: RolloutScores, exponent: RolloutScores) -> Listed:
    """Return ``exponent (apart + c)`` with the c for which its exponentials sum to 1, by bisection."""
    low, high = -apart.max() - math.log(len(apart)), -apart.min()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if float((exponent * (apart + middle)).logsumexp(-1)) > 0:
            high = middle
        else:
            low = middle
    return (exponent * (apart + low)).log_softmax(-1)


def matching_kl(score: RolloutScores, log_probs: Listed) -> Tensor:
    """``KL(softmax(r) ‖ π)`` on a listed set, in nats: 0 where the policy matches the preferences, never below.

    Args:
        score: r of each response.
        log_probs: log π of each response; need not be normalised over the set, and is normalised here.

    >>> score = torch.tensor([0.51, 0.49]).log()
    >>> matching_kl(score, torch.tensor([0.99, 0.01]).log())  # 0.51 log(0.51 / 0.99) + 0.49 log(0.49 / 0.01)
    tensor(1.5687)
    """
    target, policy = score.log_softmax(-1), log_probs.log_softmax(-1)
    return (target.exp() * (target - policy)).sum()
