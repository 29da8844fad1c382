"""Pointwise losses: from the scores of a pair's two responses, each against zero, to their losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F
from typing_extensions import override

from lit_align.objectives.base import NO_NEEDS, Needs, Part
from lit_align.objectives.papers import APO, BCO, NCA, SIMPER, SPPO, Paper
from lit_align.types import PairScores


class Pointwise(Part, ABC):
    """The losses of a pair's two sides as a function of both scores, r_w and r_l, instead of their difference.

    The loss of a pair is the sum of the two, as the formulas say it.

    Zero is where the policy equals the reference, so a pointwise loss can say that a response should become likelier
    than it was, which a `Contrast` cannot. The constant that cancels in a margin does not cancel here.

    Every subclass has a ``beta``, the inverse temperature in 1 / nats; rewards are reported as β × log-ratio.
    """

    source: ClassVar[Paper | None] = None
    beta: float

    @property
    def needs(self) -> Needs:
        """What the loss needs; both sides if the loss of one depends on the other, nothing by default."""
        return NO_NEEDS

    @property
    def beta_sets_slope(self) -> bool:
        """Whether the slopes at scores of 0 grow with β; True unless β sets a target and a subclass says so."""
        return True

    @abstractmethod
    def __call__(self, scores: PairScores) -> PairScores:
        """Return the loss of each side.

        Args:
            scores: score of each response, chosen and rejected, in nats.
        """


@dataclass(frozen=True)
class NoiseContrast(Pointwise):
    """``-log σ(β r_w) - ½ log σ(-β r_w) - ½ log σ(-β r_l)``: the chosen response is told from noise, as is each side.

    The second term keeps the chosen likelihood from running away: on its own the chosen side rests at ``log 2 / β``.

    Paper: NCA, Chen et al. 2024, arXiv:2402.05369, for pairs; β is its α.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> NoiseContrast(beta=1.0)(torch.tensor([[0.0, 0.0]]))  # 3 / 2 log 2, 1 / 2 log 2
    tensor([[1.0397, 0.3466]])
    """

    beta: float = 0.01
    source: ClassVar[Paper | None] = NCA
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = (self.beta * scores).unbind(-1)
        kept = -F.logsigmoid(chosen) - F.logsigmoid(-chosen) / 2
        return torch.stack([kept, -F.logsigmoid(-rejected) / 2], -1)


@dataclass(frozen=True)
class BinaryLogistic(Pointwise):
    """``-log σ(β r_w) - log σ(-β r_l)``: a classifier of responses into good and bad.

    Paper: BCO, Jung et al. 2024, arXiv:2404.04656, whose classifier also subtracts a running mean of the rewards: that
    is the anchor `RunningMean`.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> BinaryLogistic(beta=0.1)(torch.tensor([[5.0, -2.0]]))  # -log σ(0.5), -log σ(0.2)
    tensor([[0.4741, 0.5981]])
    """

    beta: float = 0.1
    source: ClassVar[Paper | None] = BCO
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = (self.beta * scores).unbind(-1)
        return torch.stack([-F.logsigmoid(chosen), -F.logsigmoid(-rejected)], -1)


@dataclass(frozen=True)
class SquareTargets(Pointwise):
    """``(r_w - 1 / (2 β))² + (r_l + 1 / (2 β))²``: each side is drawn to its own target, from both sides.

    Paper: SPPO, Wu et al. 2024, arXiv:2405.00675, with hard labels (a chosen response wins with probability 1); its η
    is 1 / β.

    Args:
        beta: inverse temperature, 1 / nats; the targets are ± 1 / (2 beta) nats.

    >>> SquareTargets(beta=0.1)(torch.tensor([[5.0, -2.0]]))  # (5 - 5)², (-2 + 5)²
    tensor([[0., 9.]])
    """

    beta: float = 0.001
    source: ClassVar[Paper | None] = SPPO
    beta_sets_slope: ClassVar[bool] = False  # β sets the targets, and the slopes at scores of 0 are 1 / β
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = scores.unbind(-1)
        target = 1 / (2 * self.beta)
        return torch.stack([(chosen - target) ** 2, (rejected + target) ** 2], -1)


@dataclass(frozen=True)
class AnchoredApart(Pointwise):
    """``λ_w σ(-β r_w) + λ_l σ(β r_l)``: chosen up, rejected down; for data better than what the policy writes.

    Both terms fade far from the anchor on either side: what is hopeless and what is won are left alone.

    Papers: APO-zero, D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7, with the anchor at 0 and weights of 1; KTO,
    Ethayarajh et al. 2024, arXiv:2402.01306, with the anchor `MismatchedMean`.

    Args:
        beta: inverse temperature, 1 / nats.
        chosen_weight: λ_w, what a chosen response counts, 0 or more; KTO's λ_D.
        rejected_weight: λ_l, what a rejected response counts, 0 or more; KTO's λ_U.

    >>> AnchoredApart(beta=0.1)(torch.tensor([[5.0, -2.0]]))  # σ(-0.5), σ(-0.2)
    tensor([[0.3775, 0.4502]])
    """

    beta: float = 0.1
    chosen_weight: float = 1.0
    rejected_weight: float = 1.0
    source: ClassVar[Paper | None] = APO
    ranges: ClassVar[Mapping[str, str]] = {
        "beta": "(0, 1e6]",
        "chosen_weight": "[0, inf)",
        "rejected_weight": "[0, inf)",
    }

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = (self.beta * scores).unbind(-1)
        kept, dropped = torch.sigmoid(-chosen), torch.sigmoid(rejected)
        return torch.stack([self.chosen_weight * kept, self.rejected_weight * dropped], -1)


@dataclass(frozen=True)
class AnchoredDown(Pointwise):
    """``σ(β r_w) + σ(-β (r_w - r_l))``: chosen down, rejected further; for data worse than what the policy writes.

    Paper: APO-down, D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> AnchoredDown(beta=0.1)(torch.tensor([[5.0, -2.0]]))  # σ(0.5), σ(-0.7)
    tensor([[0.6225, 0.3318]])
    """

    beta: float = 0.1
    source: ClassVar[Paper | None] = APO
    needs: ClassVar[Needs] = Needs(rejected=True)
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = (self.beta * scores).unbind(-1)
        return torch.stack([torch.sigmoid(chosen), torch.sigmoid(rejected - chosen)], -1)


@dataclass(frozen=True)
class InversePerplexity(Pointwise):
    """``(1 - e^{β r_w}) + e^{β r_l}``: the probability of a token of the chosen response up, of the rejected one down.

    With the mean log-probability as score and β = 1, ``e^r`` is the inverse perplexity of a response. Scores above 0,
    which log-probabilities do not have, count as 0. The constant 1 keeps the loss from being negative.

    Paper: SimPER, Xiao et al. 2025, arXiv:2502.00883.

    Args:
        beta: 1 in the paper, which has no such number.

    >>> InversePerplexity()(torch.tensor([[-2.0, -1.5]]))  # 1 - 0.1353, 0.2231
    tensor([[0.8647, 0.2231]])
    """

    beta: float = 1.0
    source: ClassVar[Paper | None] = SIMPER
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, scores: PairScores) -> PairScores:
        chosen, rejected = (self.beta * scores).clamp(max=0.0).unbind(-1)
        return torch.stack([-torch.expm1(chosen), rejected.exp()], -1)
