"""Shaping: token rewards from the score of a response and the penalties of its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch

from lit_align.objectives.base import check_field
from lit_align.objectives.regularizer import Regularizer
from lit_align.online.length import LengthControl, NoLengthControl
from lit_align.types import Rollout, RolloutMask, RolloutScores, RolloutTokens


@final
@dataclass(frozen=True)
class Shaping:
    """``-β penalty_t`` for every token, and the score on the last one, so that their sum is ``r - β Σ_t penalty_t``.

    The last token is the end token where the response ended by itself, and the last one that was sampled otherwise.
    Maximising the expected sum is the regularised problem itself, see ``exact.optimum``.

    Args:
        regularizer: the penalty of each token.
        beta: weight β of the penalty, above 0.
        score_limit: scores are clamped to ± this; None leaves them as they are. Clamping moves the optimum where
            scores lie outside, so under preference matching it changes the preferences that are matched.
        length: changes the penalties by position or length.

    >>> from lit_align.objectives.regularizer import KL
    >>> policy, reference = (torch.tensor([row]).log() for row in ([0.5, 0.2, 0.05], [0.4, 0.3, 0.02]))
    >>> one, mask = torch.ones(1), torch.ones(1, 3, dtype=torch.bool)
    >>> rollout = Rollout(policy, mask, 1.2 * one, one.long(), one, reference)
    >>> Shaping(KL(), beta=0.1)(rollout)  # -0.1 log(5/4), -0.1 log(2/3), 1.2 - 0.1 log(5/2)
    tensor([[-0.0223,  0.0405,  1.1084]])
    """

    regularizer: Regularizer
    beta: float = 0.1
    score_limit: float | None = None
    length: LengthControl = NoLengthControl()

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_field(self, "beta", "(0, 1e6]")
        if self.score_limit is not None:
            check_field(self, "score_limit", "(0, inf)")

    def __call__(self, rollout: Rollout) -> RolloutTokens:
        """Return the reward of each token; 0 outside the mask.

        Args:
            rollout: responses with their log-probabilities and scores.
        """
        penalty = self.regularizer(rollout.policy, rollout.reference)
        penalty = self.length(penalty, rollout.policy, rollout.reference, rollout.mask)
        rewards = torch.where(rollout.mask, -self.beta * penalty, 0.0)
        return rewards + torch.where(last_tokens(rollout.mask), self.clamped(rollout.score)[:, None], 0.0)

    def clamped(self, score: RolloutScores) -> RolloutScores:
        """Clamp scores to ± ``score_limit``."""
        limit = math.inf if self.score_limit is None else self.score_limit
        return score.clamp(-limit, limit)


def last_tokens(mask: RolloutMask) -> RolloutMask:
    """Return true on the last token of each response.

    >>> last_tokens(torch.tensor([[True, True, False], [True, True, True]])).int().tolist()
    [[0, 1, 0], [0, 0, 1]]
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    return mask & (places == mask.sum(-1, keepdim=True) - 1)
