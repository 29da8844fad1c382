"""The RLHF objective, which joins shaping, advantage, surrogate, weighting and value loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from typing_extensions import override

from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.online.advantage import GAE, Advantage
from lit_align.online.length import LengthControl, NoLengthControl
from lit_align.online.objective import Experience, OnlineNeeds, OnlineObjective, OnlineOutcome
from lit_align.online.shaping import Shaping
from lit_align.online.surrogate import Clipped, Surrogate, ValueLoss
from lit_align.online.weighting import TokenMean, TokenWeighting
from lit_align.types import Rollout, RolloutMask, RolloutScores, RolloutTokens


@final
@dataclass(frozen=True)
class RLHF(OnlineObjective):
    """``max E[r - β Σ_t penalty_t]`` by policy gradients on responses that the policy samples.

    The regularizer says what the problem is and where its optimum lies; advantage, surrogate and weighting say how it
    is approached, and any choice of them goes with any regularizer.

    Args:
        regularizer: the penalty of each token: `KL`, `Entropy` (preference matching), `ConditionalMatching`.
        beta: weight β of the penalty; exact preference matching is at 1.
        advantage: from token rewards to advantages.
        surrogate: from advantages to a loss per token.
        weighting: how much a token counts.
        value_loss: what the value model learns by, where the advantage needs one.
        score_limit: scores are clamped to ± this; None leaves them as they are.
        length: what keeps the optimum of a matching penalty from running towards the longest response.
    """

    regularizer: Regularizer = KL()
    beta: float = 0.1
    advantage: Advantage = GAE()
    surrogate: Surrogate = Clipped()
    weighting: TokenWeighting = TokenMean()
    value_loss: ValueLoss = ValueLoss()
    score_limit: float | None = None
    length: LengthControl = NoLengthControl()

    def __post_init__(self) -> None:
        """Check the ranges, which are those of the shaping; and that what is given has an effect."""
        Shaping(self.regularizer, self.beta, self.score_limit, self.length)
        if not self.advantage.needs.values and self.value_loss != ValueLoss():
            name = type(self.advantage).__name__
            raise ValueError(f"RLHF: value_loss is {self.value_loss}, but advantage {name} needs no value model")

    @property
    def shaping(self) -> Shaping:
        """Token rewards from the score and the penalty."""
        return Shaping(self.regularizer, self.beta, self.score_limit, self.length)

    @property
    @override
    def needs(self) -> OnlineNeeds:
        own = OnlineNeeds(reference=self.regularizer.needs.reference)
        return own | self.length.needs | self.advantage.needs | self.surrogate.needs

    @property
    @override
    def matches_preferences(self) -> bool:
        return self.regularizer.matches_preferences

    @property
    @override
    def cautions(self) -> tuple[str, ...]:
        cautions = []
        if self.matches_preferences and self.score_limit is not None:
            cautions.append(
                f"score_limit {self.score_limit:g} clamps scores, and preference matching depends on their absolute "
                "size: the policy will match clamped preferences"
            )
        if self.matches_preferences and self.advantage.normalises:
            cautions.append(
                f"{type(self.advantage).__name__} divides by the spread of the returns, and preference matching "
                "depends on their absolute size: the policy will not match softmax(r) exactly"
            )
        if self.regularizer.uses_whole_support:
            cautions.append(
                "the Entropy regularizer holds nothing against tokens that the reference finds impossible, and there "
                "are many of them: watch the share of the policy's mass on them, or take ConditionalMatching"
            )
        elif self.matches_preferences and not self.length.bounds_length:
            cautions.append(
                "ConditionalMatching weighs every token that the reference supports alike: where several are "
                "supported at most positions, the optimum runs towards model.sampling.max_new_tokens at every beta. "
                "Watch length and eos_rate, or set model.objective.length to TokenCost, MeanPenalty or KLAfter"
            )
        return tuple(cautions)

    @override
    def experience(self, rollout: Rollout) -> Experience:
        rewards = self.shaping(rollout)
        greedy = None if rollout.greedy is None else self.shaping.clamped(rollout.greedy)
        advantage = self.advantage(rewards, replace(rollout, greedy=greedy))
        values = rollout.values if self.needs.values else None
        return Experience(rollout, rewards, advantage, None if values is None else advantage + values)

    @override
    def __call__(
        self, experience: Experience, now: RolloutTokens, values: RolloutTokens | None = None
    ) -> OnlineOutcome:
        rollout = experience.rollout
        loss = self.surrogate(now, rollout.policy, experience.advantage)
        value = None
        if values is not None and rollout.values is not None and experience.returns is not None:
            losses = self.value_loss(values, rollout.values, experience.returns)
            value = self.value_loss.weight * self._per_response(losses, rollout.mask)
        return OnlineOutcome(self._per_response(loss, rollout.mask), self.weighting.units(rollout.mask), value)

    def _per_response(self, losses: RolloutTokens, mask: RolloutMask) -> RolloutScores:
        return (torch.where(mask, losses, 0.0) * self.weighting.tokens(mask)).sum(-1)

    @override
    def shares_clipped(self, experience: Experience, now: RolloutTokens) -> RolloutScores:
        mask = experience.rollout.mask
        with torch.enable_grad():
            leaf = now.detach().clone().requires_grad_()
            loss = self.surrogate(leaf, experience.rollout.policy, experience.advantage)
            (slope,) = torch.autograd.grad(loss.sum(), leaf)
        still = mask & (slope == 0) & (experience.advantage != 0)
        return still.sum(-1) / mask.sum(-1).clamp_min(1)
