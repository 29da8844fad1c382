"""A ranked objective compares quantiles over all pairs of a step instead of the two responses of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import Needs, Objective, Scale
from lit_align.objectives.contrast import Contrast, Logistic
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.labels import slope_of
from lit_align.objectives.papers import AOT, Paper
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores


@dataclass(frozen=True)
class Ranked(Objective):
    """What the ranked objectives are made of, and what follows for their needs.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the charge per token, from the log-probabilities of policy and reference.
    """

    contrast: Contrast = Logistic()
    averaging: Averaging = Sum()
    regularizer: Regularizer = KL()
    source: ClassVar[Paper | None] = AOT

    @property
    def needs(self) -> Needs:
        """All pairs of a step, because a rank is one among them, and what the parts need."""
        return Needs(rejected=True, batch_level=True) | self.regularizer.needs | self.averaging.needs

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The contrast's β over the averaging's length."""
        power = self.averaging.length_power
        return (Scale("", self.contrast.beta, power),) if self.contrast.beta_sets_slope and power is not None else ()


@dataclass(frozen=True)
class RankedMargins(Ranked):
    """``contrast(m_(k) - m_ref(k))``: the policy's k-th smallest margin against the k-th smallest of the reference.

    The policy's margins as a whole shall lie above the reference's (first-order stochastic dominance): a pair that the
    policy gets wrong is compared with the pairs that the reference gets most wrong, and not with itself.

    The loss is over all pairs of an optimizer step; that of a pair belongs to the rank of the policy's margin of it.
    Pairs with equal margins are ranked in their order in the batch, which moves losses among them and leaves the sum.
    The margin that is reported is what the contrast saw; rewards are each response's own.

    Paper: AOT for paired data, Melnyk et al. 2024, arXiv:2406.05882; the loss ``aot`` of TRL.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the charge per token; the reference is what it subtracts from the policy's log-probability.

    >>> from lit_align.objectives.examples import worked_pair
    >>> RankedMargins()(worked_pair()).loss  # of one pair it is DPO
    tensor([0.4032])
    """

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        charge = self.regularizer(logps.policy, logps.reference)
        log_ratio = self.averaging(charge, logps.mask, logps.draw)
        policy = _chosen_minus_rejected(self.averaging(logps.policy, logps.mask, logps.draw))
        reference = (policy - _chosen_minus_rejected(log_ratio)).detach()
        return _judged(self.contrast, policy - at_the_rank_of(policy, reference), log_ratio)


@dataclass(frozen=True)
class RankedResponses(Ranked):
    """``contrast(r_w(k) - r_l(k))``: the k-th smallest chosen score against the k-th smallest rejected one.

    The chosen responses as a whole shall score above the rejected ones, whichever belongs to which: the two sides of
    a batch may answer different prompts. As many of one are needed as of the other, so a row still has both sides.

    The loss is over all pairs of an optimizer step; that of a pair belongs to the rank of its chosen response.
    Responses of equal score are ranked in their order in the batch, which moves losses among them and leaves the sum.
    The margin that is reported is what the contrast saw; rewards are each response's own.

    Paper: AOT for unpaired data, Melnyk et al. 2024, arXiv:2406.05882; the loss ``aot_unpaired`` of TRL, which once
    was called ``aot_pair`` there.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the charge per token, from the log-probabilities of policy and reference.
        divergence: from log-ratios to scores.

    >>> from lit_align.objectives.examples import worked_pair
    >>> RankedResponses()(worked_pair()).loss  # of one pair it is DPO
    tensor([0.4032])
    """

    divergence: Divergence = ReverseKL()

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        charge = self.regularizer(logps.policy, logps.reference)
        log_ratio = self.divergence(self.averaging(charge, logps.mask, logps.draw))
        chosen, rejected = log_ratio.unbind(-1)
        return _judged(self.contrast, chosen - at_the_rank_of(chosen, rejected), log_ratio)


def at_the_rank_of(values: Margin, others: Margin) -> Margin:
    """For each value the one of the others that has its rank; among equals the earlier one ranks lower.

    >>> import torch
    >>> at_the_rank_of(torch.tensor([5.0, 1.0, 3.0]), torch.tensor([20.0, 30.0, 10.0]))
    tensor([30., 10., 20.])
    """
    ranks = values.detach().argsort(stable=True).argsort()
    return others.sort(stable=True).values[ranks]


def _judged(contrast: Contrast, margin: Margin, log_ratio: PairScores) -> Outcome:
    return Outcome(
        loss=contrast(margin),
        rewards=(contrast.beta * log_ratio).detach(),
        margin=margin.detach(),
        slope=slope_of(contrast, margin),
    )


def _chosen_minus_rejected(log_ratio: PairScores) -> Margin:
    return log_ratio[:, 0] - log_ratio[:, 1]
