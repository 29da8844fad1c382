"""The joint of on-policy training: shaping, advantage, surrogate, weighting and value loss, put together once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch

from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.online.advantage import GAE, Advantage
from lit_align.online.objective import Lesson, OnlineNeeds, OnlineObjective, OnlineOutcome
from lit_align.online.shaping import Shaping
from lit_align.online.surrogate import Clipped, Surrogate
from lit_align.online.value_loss import ValueLoss
from lit_align.online.weighting import TokenMean, Weighting
from lit_align.types import Rollout, RolloutMask, RolloutScores, RolloutTokens


@final
@dataclass(frozen=True)
class RLHF(OnlineObjective):
    """``max E[r - β Σ_t charge_t]`` by policy gradients on responses that the policy draws.

    The regularizer says what the problem is and where its optimum lies; advantage, surrogate and weighting say how it
    is approached, and any choice of them goes with any regularizer.

    Args:
        regularizer: what a token is charged: `KL`, `Entropy` (preference matching), `ConditionalMatching`.
        beta: weight β of the charge; exact preference matching is at 1.
        advantage: from token rewards to advantages.
        surrogate: from advantages to a loss per token.
        weighting: how much a token counts.
        value_loss: what the value model learns by, where the advantage needs one.
        score_limit: scores are clamped to ± this; None leaves them as they are.
    """

    regularizer: Regularizer = KL()
    beta: float = 0.1
    advantage: Advantage = GAE()
    surrogate: Surrogate = Clipped()
    weighting: Weighting = TokenMean()
    value_loss: ValueLoss = ValueLoss()
    score_limit: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges, which are those of the shaping; and that what is given has an effect."""
        Shaping(self.regularizer, self.beta, self.score_limit)
        if not self.advantage.needs.values and self.value_loss != ValueLoss():
            name = type(self.advantage).__name__
            raise ValueError(f"RLHF: value_loss is {self.value_loss}, but advantage {name} needs no value model")

    @property
    def shaping(self) -> Shaping:
        """Token rewards from the score and the charge."""
        return Shaping(self.regularizer, self.beta, self.score_limit)

    @property
    def needs(self) -> OnlineNeeds:
        """What the parts need."""
        own = OnlineNeeds(reference=self.regularizer.needs.reference)
        return own | self.advantage.needs | self.surrogate.needs

    @property
    def matches_preferences(self) -> bool:
        """What the regularizer makes of the problem."""
        return self.shaping.matches_preferences

    @property
    def cautions(self) -> tuple[str, ...]:
        """See the base class."""
        found = []
        if self.matches_preferences and self.score_limit is not None:
            found.append(
                f"score_limit {self.score_limit:g} clamps scores, and preference matching depends on their absolute "
                "size: the policy will match clamped preferences"
            )
        if self.matches_preferences and self.advantage.normalises:
            found.append(
                f"{type(self.advantage).__name__} divides by the spread of the returns, and preference matching "
                "depends on their absolute size: the policy will not match softmax(r) exactly"
            )
        if self.shaping.uses_whole_support:
            found.append(
                "the Entropy regularizer holds nothing against tokens that the reference finds impossible, and there "
                "are many of them: watch the share of the policy's mass on them, or take ConditionalMatching"
            )
        return tuple(found)

    def lesson(self, rollout: Rollout) -> Lesson:
        """See the base class."""
        rewards = self.shaping(rollout)
        greedy = None if rollout.greedy is None else self.shaping.clamped(rollout.greedy)
        advantage = self.advantage(rewards, replace(rollout, greedy=greedy))
        values = rollout.values if self.needs.values else None
        return Lesson(rollout, rewards, advantage, None if values is None else advantage + values)

    def __call__(self, lesson: Lesson, now: RolloutTokens, values: RolloutTokens | None = None) -> OnlineOutcome:
        """See the base class."""
        rollout = lesson.rollout
        loss = self.surrogate(now, rollout.policy, lesson.advantage)
        value = None
        if values is not None and rollout.values is not None and lesson.returns is not None:
            losses = self.value_loss(values, rollout.values, lesson.returns)
            value = self.value_loss.weight * self._per_response(losses, rollout.mask)
        return OnlineOutcome(self._per_response(loss, rollout.mask), self.weighting.units(rollout.mask), value)

    def _per_response(self, losses: RolloutTokens, mask: RolloutMask) -> RolloutScores:
        return (torch.where(mask, losses, 0.0) * self.weighting.tokens(mask)).sum(-1)

    def shares_clipped(self, lesson: Lesson, now: RolloutTokens) -> RolloutScores:
        """See the base class."""
        mask = lesson.rollout.mask
        with torch.enable_grad():
            leaf = now.detach().clone().requires_grad_()
            loss = self.surrogate(leaf, lesson.rollout.policy, lesson.advantage)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        still = mask & (slope == 0) & (lesson.advantage != 0)
        return still.sum(-1) / mask.sum(-1).clamp_min(1)
