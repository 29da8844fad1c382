"""The response objective, which judges each response of a pair against an anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.anchor import Anchor, NoAnchor
from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import PROBABILITY, Needs, Objective, Scale
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.pointwise import Pointwise
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.objectives.soft_labels import soft_labels
from lit_align.types import Outcome, PairLogProbs, PairScores


@dataclass(frozen=True)
class ResponseObjective(Objective):
    """``Σ_side loss(r_w - a, r_l - a)`` with ``r = h(A[penalty])``: what `PreferenceObjective` is for margins.

    No margin is formed, so there is nothing to refine, and none is reported; rewards are reported as they are before
    the anchor is subtracted. A row may have one side only if the loss and the averaging judge sides by themselves: an
    absent side (without scored tokens) has reward 0 and adds no loss. The loss of a pair is the sum of its sides', so
    the mean loss over n pairs is twice the mean over the 2 n rows that they could be split into.

    A pair of preference probability p has p times its loss plus 1 - p times the loss with its sides exchanged.

    Args:
        loss: from the scores of both responses to their losses; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the penalty per token, from the log-probabilities of policy and reference.
        divergence: from log-ratios to scores.
        anchor: the score that both responses are judged against.

    Raises:
        ValueError: when called without what a part needs.

    >>> from lit_align.objectives import BinaryLogistic, Mean
    >>> from lit_align.objectives.examples import worked_pair
    >>> averaged = ResponseObjective(BinaryLogistic(beta=2.0), averaging=Mean())
    >>> averaged(worked_pair()).loss  # -log σ(2 · 0.5) - log σ(2 · 0.05)
    tensor([0.9577])
    """

    loss: Pointwise
    averaging: Averaging = Sum()
    regularizer: Regularizer = KL()
    divergence: Divergence = ReverseKL()
    anchor: Anchor = NoAnchor()

    @property
    @override
    def needs(self) -> Needs:
        own = Needs(rejected=True, unpaired=True, columns=frozenset({PROBABILITY}))
        return own | self.loss.needs | self.regularizer.needs | self.averaging.needs | self.anchor.needs

    @property
    @override
    def initial_state(self) -> Mapping[str, float]:
        return self.anchor.initial_state

    @override
    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.anchor.advance_state(state, observed)

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        return Scale.of(self.loss.beta, self.loss.beta_sets_slope, self.averaging.length_power)

    def log_ratio(self, logps: PairLogProbs) -> PairScores:
        """Return the score of each response, in nats: the implicit reward without β."""
        penalty = self.regularizer(logps.policy, logps.reference)
        return self.divergence(self.averaging(penalty, logps.mask, logps.pair_seed))

    @soft_labels
    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        present = logps.mask.any(-1) if self.needs.unpaired else torch.ones_like(logps.mask[..., 0])
        log_ratio = torch.where(present, self.log_ratio(logps), 0.0)
        anchored = log_ratio - self.anchor(logps, self.log_ratio)[:, None]
        return Outcome(
            loss=torch.where(present, self.loss(anchored), 0.0).sum(-1),
            rewards=(self.loss.beta * log_ratio).detach(),
            observed=self.anchor.observed(log_ratio, present.to(log_ratio.dtype)),
        )
