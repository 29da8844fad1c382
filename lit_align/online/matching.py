"""The preference matching divergence, which compares the preferences of a policy with those of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn import functional as F

from lit_align.types import Margin


@final
@dataclass(frozen=True)
class PairedPreferences:
    """Pairs of responses to the same prompt, seen by the scores and by the policy.

    Args:
        score_gap: r₁ - r₂, unclamped and without β.
        log_prob_gap: log π(y₁ | x) - log π(y₂ | x) of the whole responses, in nats.
    """

    score_gap: Margin
    log_prob_gap: Margin

    def squared(self) -> Margin:
        """``((r₁ - r₂) - (log π₁ - log π₂))²``; its mean is D1 of arXiv:2405.16455.

        >>> import torch
        >>> PairedPreferences(torch.tensor([0.5]), torch.tensor([-3.0])).squared()
        tensor([12.2500])
        """
        return (self.score_gap - self.log_prob_gap) ** 2

    def bernoulli(self) -> Margin:
        """``KL(Bern(σ(r₁ - r₂)) ‖ Bern(σ(log π₁ - log π₂)))`` in nats; its mean is D2 of arXiv:2405.16455.

        >>> import torch
        >>> PairedPreferences(
        ...     torch.tensor([0.0]), torch.tensor([2.0])
        ... ).bernoulli()  # -log 2 - ½ log σ(2) - ½ log σ(-2)
        tensor([0.4338])
        """
        first, second = F.logsigmoid(self.score_gap), F.logsigmoid(-self.score_gap)
        mine, other = F.logsigmoid(self.log_prob_gap), F.logsigmoid(-self.log_prob_gap)
        return first.exp() * (first - mine) + second.exp() * (second - other)

    def of_scores(self) -> Tensor:
        """Return σ(r₁ - r₂): how often the first response is preferred."""
        return self.score_gap.sigmoid()

    def of_policy(self) -> Tensor:
        """Return σ(log π₁ - log π₂): how often the policy prefers it."""
        return self.log_prob_gap.sigmoid()
