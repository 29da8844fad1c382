"""A weighting is the rule that says how much a pair counts, from its log-probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from lit_align.objectives.base import Needs
from lit_align.objectives.papers import WPO, Paper
from lit_align.types import Margin, PairLogProbs


class Weighting(ABC):
    """How much the loss of each pair counts; `Reweighted` multiplies it. No gradient passes through a weight."""

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What must be there; the rejected side unless a leaf says otherwise."""
        return Needs(rejected=True, unpaired=True)

    @abstractmethod
    def __call__(self, logps: PairLogProbs) -> Margin:
        """The weight of each pair, 0 or more, without gradient.

        Args:
            logps: log-probabilities of the batch.
        """


@dataclass(frozen=True)
class OnPolicy(Weighting):
    """``min(1, w_w w_l)`` with ``w = exp(mean_t [lp_t - log Σ_v π(v)²])``: what the policy would write itself counts.

    Training on responses of another model is off-policy; weights of the policy's own likelihood make up for that. The
    collision probability Σ π² is what a token drawn from the policy has on average, so that a response from the
    policy weighs about 1, whether it is sure of itself or not. An absent side counts as 1.

    Paper: WPO, Zhou et al. 2024, arXiv:2406.11827, with sampled alignment, Eq. 2; the weight is cut at 1 as TRL's
    first ``use_weighting`` did, which follows the authors' code; TRL 1.16 does not cut it.

    Raises:
        ValueError: on a batch without ``collision``.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> OnPolicy()(replace(pair, collision=pair.mask * -1.25))  # e^(-2 + 1.25 - 1.5 + 1.25)
    tensor([0.3679])
    """

    source: ClassVar[Paper | None] = WPO
    needs: ClassVar[Needs] = Needs(rejected=True, collision=True, unpaired=True)

    def __call__(self, logps: PairLogProbs) -> Margin:
        """See the base class."""
        if logps.collision is None:
            raise ValueError(
                "OnPolicy compares each token with the policy's collision probability, but PairLogProbs.collision "
                "is None; expected log Σ π² of each token, or no weighting"
            )
        aligned = torch.where(logps.mask, logps.policy.detach() - logps.collision.detach(), 0.0)
        mean = aligned.sum(-1, dtype=torch.float64) / logps.mask.sum(-1).clamp(min=1)
        return mean.sum(-1).clamp(max=0.0).exp().to(logps.policy.dtype)
