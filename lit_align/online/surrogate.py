"""Surrogates, whose gradients move the policy along the advantages, and the loss of the value model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from typing_extensions import override

from lit_align.objectives.base import Part
from lit_align.objectives.papers import Paper
from lit_align.online.objective import OnlineNeeds
from lit_align.online.papers import PPO, RLOO
from lit_align.types import RolloutTokens


class Surrogate(Part, ABC):
    """From advantages and two log-probabilities to a loss per token; the log-probability now carries the gradient."""

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> OnlineNeeds:
        """Whether the loss is right only for the policy's own responses; nothing unless a subclass overrides it."""
        return OnlineNeeds()

    @abstractmethod
    def __call__(self, now: RolloutTokens, sampled: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        """Return the loss of each token.

        Args:
            now: log π(y_t) under the policy as it is now, in nats.
            sampled: the same under the policy that sampled the response.
            advantage: how much better the token was than expected.
        """


@final
@dataclass(frozen=True)
class Clipped(Surrogate):
    """``max(-A ρ, -A clip(ρ, 1 ± clip))`` with ``ρ = π / π_sampled``: no gradient once a token has moved far enough.

    Paper: PPO, Schulman et al. 2017, arXiv:1707.06347, Eq. 7.

    Args:
        clip: how far the ratio may move from 1 in the direction of the advantage, in (0, 1).

    >>> now, sampled = torch.tensor([[1.5, 1.1]]).log(), torch.zeros(1, 2)
    >>> Clipped(clip=0.2)(now, sampled, torch.ones(1, 2))  # -1.2 instead of -1.5, and -1.1
    tensor([[-1.2000, -1.1000]])
    """

    clip: float = 0.2
    source: ClassVar[Paper | None] = PPO
    ranges: ClassVar[Mapping[str, str]] = {"clip": "(0, 1)"}

    @override
    def __call__(self, now: RolloutTokens, sampled: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        ratio = (now - sampled).exp()
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - self.clip, 1 + self.clip))


@final
@dataclass(frozen=True)
class Reinforce(Surrogate):
    """``-A log π``: its gradient is the policy gradient, for responses of the policy itself.

    Paper: in the form of Ahmadian et al. 2024, arXiv:2402.14740.

    >>> Reinforce()(torch.tensor([[-0.5]]), torch.tensor([[-0.5]]), torch.tensor([[2.0]]))
    tensor([[1.]])
    """

    source: ClassVar[Paper | None] = RLOO
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(own_samples=True)

    @override
    def __call__(self, now: RolloutTokens, sampled: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        return -advantage * now


@dataclass(frozen=True)
class ValueLoss(Part):
    """``½ max((V - R)², (clip(V, V_drawn ± clip) - R)²)``: a value has no gradient once it has moved far enough.

    Paper: the clipping of PPO, Schulman et al. 2017, arXiv:1707.06347, applied to values as in its public code.

    Args:
        clip: how far a value may move from what it was when the response was sampled, in the unit of the score.
        weight: weight of this loss beside the surrogate's; the value model has weights of its own, so it only scales
            their learning rate and their share in the gradient's norm.

    >>> now, sampled, returns = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])
    >>> ValueLoss(clip=0.2)(now, sampled, returns)  # max(0, ½ (0.2 - 1)²)
    tensor([[0.3200]])
    """

    clip: float = 0.2
    weight: float = 1.0
    ranges: ClassVar[Mapping[str, str]] = {"clip": "(0, inf)", "weight": "(0, inf)"}

    def __call__(self, now: RolloutTokens, sampled: RolloutTokens, returns: RolloutTokens) -> RolloutTokens:
        """Return the loss of each token, before its weight.

        Args:
            now: the values of the value model as it is now; carries the gradient.
            sampled: its values when the response was sampled.
            returns: advantage plus value: what was seen.
        """
        near = sampled + (now - sampled).clamp(-self.clip, self.clip)
        return 0.5 * torch.maximum((now - returns) ** 2, (near - returns) ** 2)
