"""An online objective turns responses that the policy drew into a loss per token that moves it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from torch import Tensor

from lit_align.types import Rollout, RolloutScores, RolloutTokens


@dataclass(frozen=True)
class Lesson:
    """What is learned from some responses, fixed before the first step on them; no gradients.

    Args:
        rollout: the responses.
        rewards: reward of each token.
        advantage: how much better each token was than expected.
        returns: what the value model is drawn to; None without one.
    """

    rollout: Rollout
    rewards: RolloutTokens
    advantage: RolloutTokens
    returns: RolloutTokens | None = None

    def rows(self, which: Tensor | slice) -> Lesson:
        """What is learned from some of the responses.

        Args:
            which: their places.
        """
        returns = None if self.returns is None else self.returns[which]
        return Lesson(self.rollout.rows(which), self.rewards[which], self.advantage[which], returns)


@dataclass(frozen=True)
class OnlineOutcome:
    """The losses of some responses, with gradient.

    Args:
        policy: loss of each response, its tokens weighted.
        units: what each response adds to the denominator of a step's loss.
        value: loss of the value model of each response, weighted alike; None without one.
    """

    policy: RolloutScores
    units: RolloutScores
    value: RolloutScores | None = None


@dataclass(frozen=True)
class OnlineNeeds:
    """What an online objective, or a part of one, needs; ``|`` joins the needs of parts.

    Args:
        reference: ``rollout.reference`` must be there.
        values: ``rollout.values`` must be there.
        greedy: ``rollout.greedy`` must be there.
        own_samples: the loss is right only for the first step after the responses were sampled.
        responses: how many responses to each prompt are needed at least.

    >>> OnlineNeeds(values=True) | OnlineNeeds(responses=2) == OnlineNeeds(values=True, responses=2)
    True
    """

    reference: bool = False
    values: bool = False
    greedy: bool = False
    own_samples: bool = False
    responses: int = 1

    def __or__(self, other: OnlineNeeds) -> OnlineNeeds:
        """What either needs."""
        return OnlineNeeds(
            **{part.name: max(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)}
        )


class OnlineObjective(ABC):
    """What is optimised by drawing responses; it sees log-probabilities, values and scores, and no model.

    Like an ``Objective`` it answers for what it needs, and whoever prepares its input reads that.
    """

    @property
    @abstractmethod
    def needs(self) -> OnlineNeeds:
        """What must be in the rollout."""

    @property
    @abstractmethod
    def cautions(self) -> tuple[str, ...]:
        """What its settings do to its optimum that a user may not expect, one sentence each."""

    @property
    @abstractmethod
    def matches_preferences(self) -> bool:
        """Whether the optimum depends on the absolute scale of the scores and on samples of the policy's own."""

    @abstractmethod
    def lesson(self, rollout: Rollout) -> Lesson:
        """What is to be learned from responses; called once for all responses to the same prompts."""

    @abstractmethod
    def __call__(self, lesson: Lesson, now: RolloutTokens, values: RolloutTokens | None = None) -> OnlineOutcome:
        """The losses of responses, for any part of a lesson.

        Args:
            lesson: what is learned from them.
            now: log-probabilities under the policy as it is now; carry the gradient.
            values: values of the value model as it is now; None without one.
        """

    @abstractmethod
    def shares_clipped(self, lesson: Lesson, now: RolloutTokens) -> RolloutScores:
        """Share of each response's tokens that the surrogate leaves alone, without gradient."""
