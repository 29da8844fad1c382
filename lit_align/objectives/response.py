"""The joint of objectives that judge each response against an anchor, put together once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.objectives.anchor import Anchor, NoAnchor
from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import PROBABILITY, Needs, Objective, Scale
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.labels import expected_loss
from lit_align.objectives.pointwise import Pointwise
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores


@dataclass(frozen=True)
class ResponseObjective(Objective):
    """``Σ_side loss(r_w - a, r_l - a)`` with ``r = h(A[charge])``: what `PreferenceObjective` is for margins.

    No margin is formed, so there is nothing to refine, and none is reported; rewards are reported as they are before
    the anchor is subtracted. A row may have one side only if the loss and the averaging judge sides by themselves: an
    absent side (without scored tokens) has reward 0 and adds no loss. The loss of a pair is the sum of its sides', so
    the mean loss over n pairs is twice the mean over the 2 n rows that they could be split into.

    A pair of preference probability p has p times its loss plus 1 - p times the loss with its sides exchanged.

    Args:
        loss: from the scores of both responses to their losses; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the charge per token, from the log-probabilities of policy and reference.
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
    def needs(self) -> Needs:
        """What the parts need. Rows may be unpaired if neither the loss nor the averaging looks at the other side."""
        own = Needs(rejected=True, unpaired=True, columns=frozenset({PROBABILITY}))
        return own | self.loss.needs | self.regularizer.needs | self.averaging.needs | self.anchor.needs

    @property
    def running(self) -> Mapping[str, float]:
        """What the anchor carries."""
        return self.anchor.running

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the anchor says."""
        return self.anchor.advance(running, observed)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The loss's β over the averaging's length."""
        power = self.averaging.length_power
        return (Scale("", self.loss.beta, power),) if self.loss.beta_sets_slope and power is not None else ()

    def log_ratio(self, logps: PairLogProbs) -> PairScores:
        """The score of each response, in nats: the implicit reward without β."""
        charge = self.regularizer(logps.policy, logps.reference)
        return self.divergence(self.averaging(charge, logps.mask, logps.draw))

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        present = logps.mask.any(-1) if self.needs.unpaired else torch.ones_like(logps.mask[..., 0])
        log_ratio = torch.where(present, self.log_ratio(logps), 0.0)
        anchored = log_ratio - self.anchor(logps, self.log_ratio)[:, None]

        def exchanged() -> Margin:
            return self._loss(anchored.flip(1), present.flip(1))

        return Outcome(
            loss=expected_loss(logps.preference_probability, self._loss(anchored, present), exchanged),
            rewards=(self.loss.beta * log_ratio).detach(),
            observed=self.anchor.observed(log_ratio, present.to(log_ratio.dtype)),
        )

    def _loss(self, scores: PairScores, present: Tensor) -> Margin:
        return torch.where(present, self.loss(scores), 0.0).sum(-1)
