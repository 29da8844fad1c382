"""Length controls: what keeps the optimum of a matching penalty from running towards the longest response.

A penalty that ignores the reference on the tokens that it supports weighs each of them 1. Where the weights of all
tokens but the end sum to M at a position, responses of n tokens weigh M^n together. With M above 1 that grows faster
than any bounded score can outweigh, so the optimum runs towards the limit of length, at every β.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from typing_extensions import override

from lit_align.objectives.base import Part
from lit_align.online.objective import OnlineNeeds
from lit_align.types import RolloutMask, RolloutTokens


class LengthControl(Part, ABC):
    """Changes the penalties of tokens by where they stand in a response, or by how many there are."""

    power: ClassVar[float] = 0.0
    """The power of the length that penalties are divided by; the optimum's log-probability is multiplied by it."""

    @property
    def needs(self) -> OnlineNeeds:
        """What the rollout must hold; nothing unless a subclass overrides it."""
        return OnlineNeeds()

    @property
    def bounds_length(self) -> bool:
        """Whether it keeps the optimum's length finite; True by default."""
        return True

    @abstractmethod
    def __call__(
        self, penalty: RolloutTokens, policy: RolloutTokens, reference: RolloutTokens | None, mask: RolloutMask
    ) -> RolloutTokens:
        """Return the penalties; what stands outside the mask does not matter.

        Args:
            penalty: of each token, by the regularizer.
            policy: log-probabilities under the policy.
            reference: the same under the reference; None where there is none.
            mask: true on the tokens of each response.
        """


@final
@dataclass(frozen=True)
class NoLengthControl(LengthControl):
    """The penalties as they are.

    >>> NoLengthControl()(torch.ones(1, 2), torch.zeros(1, 2), None, torch.ones(1, 2, dtype=torch.bool))
    tensor([[1., 1.]])
    """

    bounds_length: ClassVar[bool] = False

    @override
    def __call__(
        self, penalty: RolloutTokens, policy: RolloutTokens, reference: RolloutTokens | None, mask: RolloutMask
    ) -> RolloutTokens:
        return penalty


@final
@dataclass(frozen=True)
class TokenCost(LengthControl):
    """``penalty_t + cost``: the optimum is multiplied by ``exp(-cost n)``, and its length is finite for cost > log M.

    Among responses of the same length nothing changes, so they match preferences as before. In the unit of the score
    a token costs ``β cost``. The offline counterpart is `LengthGap` with the same strength.

    Args:
        cost: nats per token, above 0; log M is at most the logarithm of the number of tokens that the reference
            supports at a position.

    >>> TokenCost(0.5)(torch.ones(1, 2), torch.zeros(1, 2), None, torch.ones(1, 2, dtype=torch.bool))
    tensor([[1.5000, 1.5000]])
    """

    cost: float
    ranges: ClassVar[Mapping[str, str]] = {"cost": "(0, inf)"}

    @override
    def __call__(
        self, penalty: RolloutTokens, policy: RolloutTokens, reference: RolloutTokens | None, mask: RolloutMask
    ) -> RolloutTokens:
        return penalty + self.cost


@final
@dataclass(frozen=True)
class MeanPenalty(LengthControl):
    """``penalty_t / n``: log-likelihoods are averaged, as in arXiv:2406.19188.

    With W the optimum's factor from the reference, ``π ∝ W exp(r / β)`` becomes ``W exp(n (r / β + c))``. The constant
    c that makes the sum 1 acts as a cost of each token, just large enough for a finite length: where all scores are
    equal and the end is supported, the mean length is M + 1 tokens under any limit. Among responses of n tokens
    preferences are matched n times as strongly, so β is to be about n times as large. The offline counterpart is the
    averaging `Mean`.

    >>> mask = torch.tensor([[True, True, False], [True, True, True]])
    >>> MeanPenalty()(torch.ones(2, 3), torch.zeros(2, 3), None, mask)[:, 0]
    tensor([0.5000, 0.3333])
    """

    power: ClassVar[float] = 1.0

    @override
    def __call__(
        self, penalty: RolloutTokens, policy: RolloutTokens, reference: RolloutTokens | None, mask: RolloutMask
    ) -> RolloutTokens:
        return penalty / mask.sum(-1, keepdim=True).clamp_min(1)


@final
@dataclass(frozen=True)
class KLAfter(LengthControl):
    """The penalty on the first tokens of a response, and that of `KL` on later ones: an α that is 1 from there on.

    Beyond these tokens the optimum's weights are the reference's, which sum to 1, so that responses end as the
    reference ends them.

    Args:
        tokens: how many tokens of a response are matched, 1 or more.

    >>> policy, reference = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-2.0, -2.0, -2.0]])
    >>> KLAfter(1)(policy, policy, reference, torch.ones(1, 3, dtype=torch.bool))
    tensor([[-1.,  1.,  1.]])
    """

    tokens: int
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(reference=True)
    ranges: ClassVar[Mapping[str, str]] = {"tokens": "[1, inf)"}

    @override
    def __call__(
        self, penalty: RolloutTokens, policy: RolloutTokens, reference: RolloutTokens | None, mask: RolloutMask
    ) -> RolloutTokens:
        if reference is None:
            raise ValueError("KLAfter compares later tokens with the reference, but the rollout holds no reference")
        early = torch.arange(penalty.shape[-1], device=penalty.device) < self.tokens
        return torch.where(early, penalty, policy - reference)
