"""The likelihood objective, which raises the probability of a response without comparing it to another."""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from lit_align.objectives.averaging import Averaging, Mean
from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome, PairLogProbs


@dataclass(frozen=True)
class SFT(Objective):
    """``-A[lp]`` of the chosen response: supervised fine-tuning, one response one vote.

    The average is taken per response, so with `Mean` a long response weighs as much as a short one; with `Sum` every
    token weighs the same within a batch. The rejected side may be absent; where it is there, its reward is reported.
    Rewards are the averaged log-likelihoods themselves, in nats.

    Args:
        averaging: from the log-probabilities of tokens to one number per response.

    >>> from lit_align.objectives.examples import worked_pair
    >>> outcome = SFT()(worked_pair())
    >>> outcome.loss, outcome.rewards  # 20 nats over 10 tokens; 60 over 40
    (tensor([2.]), tensor([[-2.0000, -1.5000]]))
    """

    averaging: Averaging = Mean()

    @property
    @override
    def needs(self) -> Needs:
        return Needs() | self.averaging.needs

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        likelihood = self.averaging(logps.policy, logps.mask, logps.pair_seed)
        return Outcome(loss=-likelihood[:, 0], rewards=likelihood.detach())
