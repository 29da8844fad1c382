"""Token weightings: how much each token counts in the loss of an optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from lit_align.objectives.base import Part
from lit_align.types import RolloutMask, RolloutScores, RolloutTokens


class TokenWeighting(Part, ABC):
    """Weights of tokens, and what their weighted sum is divided by.

    Numerator and denominator are apart because both are sums over responses: a step that is split into micro-batches
    or over processes divides the sum of all by the sum of all.
    """

    @abstractmethod
    def tokens(self, mask: RolloutMask) -> RolloutTokens:
        """Return the weight of each token; 0 outside the mask."""

    @abstractmethod
    def units(self, mask: RolloutMask) -> RolloutScores:
        """Return what each response adds to the denominator."""


@final
@dataclass(frozen=True)
class ResponseSum(TokenWeighting):
    """Every token counts 1, and the sum is divided by the number of responses: the gradient of the problem itself.

    >>> mask = torch.tensor([[True, True, False], [True, True, True]])
    >>> ResponseSum().units(mask).tolist()
    [1.0, 1.0]
    """

    @override
    def tokens(self, mask: RolloutMask) -> RolloutTokens:
        return mask.float()

    @override
    def units(self, mask: RolloutMask) -> RolloutScores:
        return torch.ones_like(mask[:, 0], dtype=torch.float32)


@final
@dataclass(frozen=True)
class TokenMean(TokenWeighting):
    """Every token counts 1, and the sum is divided by the number of tokens: `ResponseSum` over the mean length.

    >>> mask = torch.tensor([[True, True, False], [True, True, True]])
    >>> TokenMean().units(mask).tolist()
    [2.0, 3.0]
    """

    @override
    def tokens(self, mask: RolloutMask) -> RolloutTokens:
        return mask.float()

    @override
    def units(self, mask: RolloutMask) -> RolloutScores:
        return mask.sum(-1).float()


@final
@dataclass(frozen=True)
class ResponseMean(TokenWeighting):
    """Every response counts 1, its tokens 1 / n: a long response moves each of its tokens less; as in GRPO.

    >>> mask = torch.tensor([[True, True, False], [True, True, True]])
    >>> ResponseMean().tokens(mask)
    tensor([[0.5000, 0.5000, 0.0000],
            [0.3333, 0.3333, 0.3333]])
    """

    @override
    def tokens(self, mask: RolloutMask) -> RolloutTokens:
        return mask / mask.sum(-1, keepdim=True).clamp_min(1)

    @override
    def units(self, mask: RolloutMask) -> RolloutScores:
        return torch.ones_like(mask[:, 0], dtype=torch.float32)
