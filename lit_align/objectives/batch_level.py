"""Objectives that compare quantiles over all pairs of a step instead of the two responses of each pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import Needs, Objective, Scale, chosen_minus_rejected, refined
from lit_align.objectives.contrast import Contrast, Logistic
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.papers import AOT, Paper
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores


@dataclass(frozen=True)
class Ranked(Objective):
    """Base of the ranked objectives: their parts, and what follows for their needs.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the penalty per token, from the log-probabilities of policy and reference.
    """

    contrast: Contrast = Logistic()
    averaging: Averaging = Sum()
    regularizer: Regularizer = KL()
    source: ClassVar[Paper | None] = AOT

    @property
    @override
    def needs(self) -> Needs:
        return Needs(rejected=True, batch_level=True) | self.regularizer.needs | self.averaging.needs

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        return Scale.of(self.contrast.beta, self.averaging.length_power, not self.contrast.beta_sets_slope)

    @override
    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin:
        return self.contrast.slope(refined(outcome)).abs()

    def _outcome(self, margin: Margin, log_ratio: PairScores) -> Outcome:
        rewards = (self.contrast.beta * log_ratio).detach()
        return Outcome(loss=self.contrast(margin), rewards=rewards, margin=margin.detach())


@dataclass(frozen=True)
class RankedMargins(Ranked):
    """``contrast(m_(k) - m_ref(k))``: the policy's k-th smallest margin against the k-th smallest of the reference.

    The policy's margins as a whole are pushed above the reference's (first-order stochastic dominance): a pair that
    the policy gets wrong is compared with the pairs that the reference gets most wrong, and not with itself.

    The loss is over all pairs of an optimizer step; that of a pair belongs to the rank of the policy's margin of it.
    Pairs with equal margins are ranked in their order in the batch, which moves losses among them and leaves the sum.
    The margin that is reported is what the contrast saw; rewards are each response's own.

    Paper: AOT for paired data, Melnyk et al. 2024, arXiv:2406.05882; the loss ``aot`` of TRL.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the penalty per token; the reference is what it subtracts from the policy's log-probability.

    >>> from lit_align.objectives.examples import worked_pair
    >>> RankedMargins()(worked_pair()).loss  # of one pair it is DPO
    tensor([0.4032])
    """

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        penalty = self.regularizer(logps.policy, logps.reference)
        log_ratio = self.averaging(penalty, logps.mask, logps.pair_seed)
        policy = chosen_minus_rejected(self.averaging(logps.policy, logps.mask, logps.pair_seed))
        reference = (policy - chosen_minus_rejected(log_ratio)).detach()
        return self._outcome(policy - at_the_rank_of(policy, reference), log_ratio)


@dataclass(frozen=True)
class RankedResponses(Ranked):
    """``contrast(r_w(k) - r_l(k))``: the k-th smallest chosen score against the k-th smallest rejected one.

    The chosen responses as a whole are pushed above the rejected ones, whichever belongs to which: the two sides of
    a batch may answer different prompts. As many of one are needed as of the other, so a row still has both sides.

    The loss is over all pairs of an optimizer step; that of a pair belongs to the rank of its chosen response.
    Responses of equal score are ranked in their order in the batch, which moves losses among them and leaves the sum.
    The margin that is reported is what the contrast saw; rewards are each response's own.

    Paper: AOT for unpaired data, Melnyk et al. 2024, arXiv:2406.05882; the loss ``aot_unpaired`` of TRL, which once
    was called ``aot_pair`` there.

    Args:
        contrast: from the difference of quantiles to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the penalty per token, from the log-probabilities of policy and reference.
        divergence: from log-ratios to scores.

    >>> from lit_align.objectives.examples import worked_pair
    >>> RankedResponses()(worked_pair()).loss  # of one pair it is DPO
    tensor([0.4032])
    """

    divergence: Divergence = ReverseKL()

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        penalty = self.regularizer(logps.policy, logps.reference)
        log_ratio = self.divergence(self.averaging(penalty, logps.mask, logps.pair_seed))
        chosen, rejected = log_ratio.unbind(-1)
        return self._outcome(chosen - at_the_rank_of(chosen, rejected), log_ratio)


def at_the_rank_of(values: Margin, others: Margin) -> Margin:
    """Return for each value the one of the others that has its rank; among equals the earlier one ranks lower.

    >>> import torch
    >>> at_the_rank_of(torch.tensor([5.0, 1.0, 3.0]), torch.tensor([20.0, 30.0, 10.0]))
    tensor([30., 10., 20.])
    """
    ranks = values.detach().argsort(stable=True).argsort()
    return others.sort(stable=True).values[ranks]
