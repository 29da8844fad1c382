"""The odds ratio objective, which compares how much likelier than not the two responses are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F
from typing_extensions import override

from lit_align.objectives.averaging import Averaging, Mean
from lit_align.objectives.base import MARGIN, PROBABILITY, Needs, Objective, chosen_minus_rejected
from lit_align.objectives.contrast import Contrast, Logistic
from lit_align.objectives.papers import ORPO, Paper
from lit_align.objectives.soft_labels import soft_labels, stated_margin
from lit_align.types import Outcome, PairLogProbs, PairScores

NEAREST_TO_CERTAIN = -1e-6
"""The log-probability, in nats, beyond which log-odds continue along their tangent; float32 knows no nearer ones."""


@dataclass(frozen=True)
class OddsRatio(Objective):
    """``contrast(o_w - o_l)`` with log-odds ``o = log(p / (1 - p))``, ``log p = A[lp]``; no reference is needed.

    Log-odds are no `Divergence`: they are those of a probability, and a log-ratio can be positive. Where p is 1 as far
    as float32 can tell, they continue along their tangent, so that values and gradients stay finite.

    Paper: ORPO, Hong et al. 2024, arXiv:2403.07691, Eq. 7, where the ratio is one term beside the likelihood of the
    chosen response.

    Args:
        contrast: from the log of the odds ratio to the loss.
        averaging: from the log-probabilities of tokens to that of the response.

    >>> from lit_align.objectives.examples import worked_pair
    >>> outcome = OddsRatio()(worked_pair())
    >>> outcome.rewards  # -log(e² - 1), -log(e^1.5 - 1)
    tensor([[-1.8546, -1.2475]])
    >>> outcome.loss  # -log σ(-1.8546 + 1.2475)
    tensor([1.0421])
    """

    contrast: Contrast = Logistic(beta=1.0)
    averaging: Averaging = Mean()
    source: ClassVar[Paper | None] = ORPO

    @property
    @override
    def needs(self) -> Needs:
        return Needs(rejected=True, columns=frozenset({MARGIN, PROBABILITY})) | self.averaging.needs

    @soft_labels
    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        odds = log_odds(self.averaging(logps.policy, logps.mask, logps.pair_seed))
        margin = chosen_minus_rejected(odds)
        offset = stated_margin(logps, self.contrast.beta, margin)
        return Outcome(
            loss=self.contrast(margin - offset),
            rewards=(self.contrast.beta * odds).detach(),
            margin=margin.detach(),
            offset=offset.detach(),
        )


def log_odds(log_probs: PairScores) -> PairScores:
    """Return ``log(p / (1 - p))`` from log p, finite for every log p.

    >>> log_odds(torch.tensor([[math.log(0.75), math.log(0.5)]]))  # log 3, log 1
    tensor([[1.0986, 0.0000]])
    """
    slope = -1 / math.expm1(NEAREST_TO_CERTAIN)
    beyond = F.relu(log_probs - NEAREST_TO_CERTAIN)
    within = log_probs.clamp(max=NEAREST_TO_CERTAIN)
    return within - torch.log(-torch.expm1(within)) + slope * beyond
