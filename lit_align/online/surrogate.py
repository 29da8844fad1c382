"""A surrogate is the loss per token whose gradient moves the policy along the advantages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from lit_align.objectives.papers import Paper
from lit_align.objectives.ranges import check_range
from lit_align.online.objective import OnlineNeeds
from lit_align.online.papers import PPO, RLOO
from lit_align.types import RolloutTokens


class Surrogate(ABC):
    """From advantages and two log-probabilities to a loss per token; the log-probability now carries the gradient."""

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> OnlineNeeds:
        """Whether the loss is right only for the policy's own responses; nothing unless a leaf says otherwise."""
        return OnlineNeeds()

    @abstractmethod
    def __call__(self, now: RolloutTokens, drawn: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        """The loss of each token.

        Args:
            now: log π(y_t) under the policy as it is now, in nats.
            drawn: the same under the policy that drew the response.
            advantage: how much better the token was than expected.
        """


@final
@dataclass(frozen=True)
class Clipped(Surrogate):
    """``max(-A ρ, -A clip(ρ, 1 ± clip))`` with ``ρ = π / π_drawn``: a token is left alone once it has moved enough.

    Paper: PPO, Schulman et al. 2017, arXiv:1707.06347, Eq. 7.

    Args:
        clip: how far the ratio may move from 1 in the direction of the advantage, in (0, 1).

    >>> now, drawn = torch.tensor([[1.5, 1.1]]).log(), torch.zeros(1, 2)
    >>> Clipped(clip=0.2)(now, drawn, torch.ones(1, 2))  # -1.2 instead of -1.5, and -1.1
    tensor([[-1.2000, -1.1000]])
    """

    clip: float = 0.2
    source: ClassVar[Paper | None] = PPO

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "clip", "(0, 1)")

    def __call__(self, now: RolloutTokens, drawn: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        """See the base class."""
        ratio = (now - drawn).exp()
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

    def __call__(self, now: RolloutTokens, drawn: RolloutTokens, advantage: RolloutTokens) -> RolloutTokens:
        """See the base class."""
        return -advantage * now
