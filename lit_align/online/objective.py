"""The interface of online objectives, and the records that they work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

from torch import Tensor

from lit_align.types import Rollout, RolloutScores, RolloutTokens


@dataclass(frozen=True)
class Experience:
    """Responses with their rewards and advantages, fixed before the first step on them; no gradients.

    Args:
        rollout: the responses.
        rewards: reward of each token.
        advantage: how much better each token was than expected.
        returns: the targets of the value model; None without one.
    """

    rollout: Rollout
    rewards: RolloutTokens
    advantage: RolloutTokens
    returns: RolloutTokens | None = None

    def rows(self, which: Tensor | slice) -> Experience:
        """Return the experience of some of the responses.

        Args:
            which: their places.
        """
        returns = None if self.returns is None else self.returns[which]
        return Experience(self.rollout.rows(which), self.rewards[which], self.advantage[which], returns)


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
        """Join the needs of two parts."""
        return OnlineNeeds(
            **{part.name: max(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)}
        )


class OnlineObjective(ABC):
    """What is optimised on sampled responses; it sees log-probabilities, values and scores, and no model.

    Like an ``Objective`` it states what it needs, and whoever prepares its input reads that.
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
    def experience(self, rollout: Rollout) -> Experience:
        """Turn responses into experience; called once for all responses to the same prompts."""

    @abstractmethod
    def __call__(
        self, experience: Experience, now: RolloutTokens, values: RolloutTokens | None = None
    ) -> OnlineOutcome:
        """Return the losses of the responses of any part of an experience.

        Args:
            experience: the responses.
            now: log-probabilities under the policy as it is now; carry the gradient.
            values: values of the value model as it is now; None without one.
        """

    @abstractmethod
    def shares_clipped(self, experience: Experience, now: RolloutTokens) -> RolloutScores:
        """Return the share of each response's tokens on which the surrogate has no gradient."""
