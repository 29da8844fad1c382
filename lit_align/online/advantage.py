"""Advantages: how much better each token of a response was than expected."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lit_align.objectives.base import Part
from lit_align.objectives.papers import Paper
from lit_align.online.objective import OnlineNeeds
from lit_align.online.papers import ADVANTAGES, GROUPS, REMAX, RLOO
from lit_align.types import Rollout, RolloutScores, RolloutTokens


class Advantage(Part, ABC):
    """From token rewards to advantages. What stands outside the mask never matters, and comes back as 0."""

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> OnlineNeeds:
        """What the rollout must hold; a single response without more unless a subclass overrides it."""
        return OnlineNeeds()

    @property
    def normalises(self) -> bool:
        """Whether the scale of the returns is divided out, which moves the optimum; False by default."""
        return False

    @abstractmethod
    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        """Return the advantage of each token.

        Args:
            rewards: reward of each token, 0 outside the mask.
            rollout: what they are the rewards of.

        Raises:
            ValueError: the rollout lacks what the part needs.
        """


@final
@dataclass(frozen=True)
class GAE(Advantage):
    """``Σ_k (γ λ)^k δ_{t+k}`` with ``δ_t = reward_t + γ V_{t+1} - V_t``: a value model knows what to expect.

    Paper: Schulman et al. 2015, arXiv:1506.02438, Eq. 16. The response's last token is the end of the episode,
    whether it ended by itself or was cut.

    Args:
        discount: γ in [0, 1]; 1 is the problem as stated, less prefers short responses.
        trace: λ in [0, 1]; 1 trusts the rewards alone (no bias, much noise), 0 the value model.

    >>> one, mask = torch.ones(1), torch.ones(1, 2, dtype=torch.bool)
    >>> values, rewards = torch.tensor([[0.5, 0.25]]), torch.tensor([[0.0, 1.0]])
    >>> rollout = Rollout(values, mask, one, one.long(), one, values=values)
    >>> GAE(trace=0.5)(rewards, rollout)  # δ = -0.25, 0.75; -0.25 + 0.5 · 0.75
    tensor([[0.1250, 0.7500]])
    """

    discount: float = 1.0
    trace: float = 0.95
    source: ClassVar[Paper | None] = ADVANTAGES
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(values=True)
    ranges: ClassVar[Mapping[str, str]] = {"discount": "[0, 1]", "trace": "[0, 1]"}

    @override
    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        if rollout.values is None:
            raise ValueError("GAE needs the values of a value model, but the rollout has none")
        values = torch.where(rollout.mask, rollout.values, 0.0)
        following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
        errors = torch.where(rollout.mask, rewards + self.discount * following - values, 0.0)
        advantages, later = torch.zeros_like(errors), torch.zeros_like(errors[:, 0])
        for place in reversed(range(errors.shape[1])):
            later = errors[:, place] + self.discount * self.trace * later
            advantages[:, place] = later
        return torch.where(rollout.mask, advantages, 0.0)


@final
@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """``R - mean of the other responses' R`` on every token: the other responses to a prompt are the baseline.

    Paper: RLOO, Ahmadian et al. 2024, arXiv:2402.14740, where R is the score less the whole penalty, as here. The
    baseline does not depend on the response, so the gradient is unbiased.

    >>> one, mask = torch.ones(3), torch.ones(3, 1, dtype=torch.bool)
    >>> rewards = torch.tensor([[3.0], [0.0], [0.0]])
    >>> LeaveOneOut()(rewards, Rollout(rewards, mask, one, one.long(), one)).flatten().tolist()
    [3.0, -1.5, -1.5]
    """

    source: ClassVar[Paper | None] = RLOO
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(responses=2)

    @override
    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        count, apart = _group_sizes(self, rollout), _from_group_mean(rewards, rollout)
        return _on_tokens(apart * count / (count - 1), rollout)


@final
@dataclass(frozen=True)
class GroupNormalised(Advantage):
    """``(R - mean) / standard deviation`` among the responses to a prompt, on every token.

    Paper: GRPO, Shao et al. 2024, arXiv:2402.03300, Eq. 4 (the deviation divides by n - 1, as in the authors' code).
    There R is the score alone and the penalty a term of the loss; here the penalty is in R, as everywhere. Dividing by
    the deviation makes prompts with small differences count as much as others, so the optimum is not exactly that of
    the regularised problem.

    Args:
        floor: added to the deviation, above 0, in the unit of the score.

    >>> one, mask = torch.ones(3), torch.ones(3, 1, dtype=torch.bool)
    >>> rewards = torch.tensor([[2.0], [0.0], [1.0]])
    >>> GroupNormalised(1e-6)(rewards, Rollout(rewards, mask, one, one.long(), one)).flatten()
    tensor([ 1.0000, -1.0000,  0.0000])
    """

    floor: float = 1e-4
    source: ClassVar[Paper | None] = GROUPS
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(responses=2)
    normalises: ClassVar[bool] = True  # by the deviation
    ranges: ClassVar[Mapping[str, str]] = {"floor": "(0, inf)"}

    @override
    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        count, apart = _group_sizes(self, rollout), _from_group_mean(rewards, rollout)
        variance = _group_sum(apart**2, rollout) / (count - 1)
        return _on_tokens(apart / (variance.sqrt() + self.floor), rollout)


@final
@dataclass(frozen=True)
class GreedyBaseline(Advantage):
    """``R - score of the most likely response`` on every token.

    Paper: ReMax, Li et al. 2023, arXiv:2310.10505. The baseline is a score without penalty: it does not depend on the
    response either, so the gradient is unbiased.

    >>> one, mask, rewards = torch.ones(1), torch.ones(1, 2, dtype=torch.bool), torch.tensor([[-0.5, 2.0]])
    >>> GreedyBaseline()(rewards, Rollout(rewards, mask, one, one.long(), one, greedy=one))  # 1.5 - 1
    tensor([[0.5000, 0.5000]])
    """

    source: ClassVar[Paper | None] = REMAX
    needs: ClassVar[OnlineNeeds] = OnlineNeeds(greedy=True)

    @override
    def __call__(self, rewards: RolloutTokens, rollout: Rollout) -> RolloutTokens:
        if rollout.greedy is None:
            raise ValueError("GreedyBaseline needs the scores of the most likely responses, but the rollout has none")
        return _on_tokens(rewards.sum(-1) - rollout.greedy, rollout)


def _group_sizes(part: Advantage, rollout: Rollout) -> RolloutScores:
    """Count the responses to the same prompt, for each response."""
    count = _group_sum(torch.ones_like(rollout.score), rollout)
    if bool((count < part.needs.responses).any()):
        name = type(part).__name__
        raise ValueError(f"{name} compares responses to one prompt; found {int(count.min())}, expected 2 or more")
    return count


def _from_group_mean(rewards: RolloutTokens, rollout: Rollout) -> RolloutScores:
    """Subtract the mean return of the responses to the same prompt from the return of each.

    In float64, and relative to the largest: float32 rounds the mean of large returns, and what is left of equal ones
    would be normalised to 1.
    """
    returns, number = rewards.double().sum(-1), _numbered_groups(rollout)
    largest = torch.full_like(returns, -torch.inf).scatter_reduce(0, number, returns, "amax")
    below = returns - largest[number]
    return (below - _group_sum(below, rollout) / _group_sum(torch.ones_like(below), rollout)).to(rewards.dtype)


def _group_sum(values: RolloutScores, rollout: Rollout) -> RolloutScores:
    """Sum over the responses to the same prompt, for each of them; in float64, so that their order does not matter."""
    number = _numbered_groups(rollout)
    sums = torch.zeros_like(values, dtype=torch.float64).index_add(0, number, values.double())
    return sums[number].to(values.dtype)


def _numbered_groups(rollout: Rollout) -> Int[Tensor, " rollout"]:
    """Number the prompts from 0, and return the number of each response's own; no host waits for it.

    >>> one, mask = torch.ones(4), torch.ones(4, 1, dtype=torch.bool)
    >>> _numbered_groups(Rollout(one[:, None], mask, one, torch.tensor([7, 5, 7, 5]), one)).tolist()
    [1, 0, 1, 0]
    """
    groups, order = rollout.group.sort(stable=True)
    number = F.pad((groups[1:] != groups[:-1]).long(), (1, 0)).cumsum(0)
    return torch.zeros_like(order).scatter(0, order, number)


def _on_tokens(advantage: RolloutScores, rollout: Rollout) -> RolloutTokens:
    return torch.where(rollout.mask, advantage[:, None], 0.0)
