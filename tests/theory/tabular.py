"""A world that is small enough to enumerate: prompts, all responses as tokens, and tabular policies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lit_align.objectives import Objective
from lit_align.types import PairLogProbs

STOP = 2
"""The token that ends a response, besides 0 and 1."""
DEPTH = 3
"""Tokens of the longest response; the last token can only be the stop."""


def responses_after(prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return all responses with a prefix: words over 0 and 1, each ended by the stop."""
    longer = (
        [word for token in (0, 1) for word in responses_after((*prefix, token))] if len(prefix) + 1 < DEPTH else []
    )
    return [(*prefix, STOP), *longer]


RESPONSES = responses_after()
PREFIXES = sorted({response[:t] for response in RESPONSES for t in range(len(response))})
LENGTHS = torch.tensor([float(len(response)) for response in RESPONSES], dtype=torch.float64)
MASK = torch.arange(DEPTH) < LENGTHS[:, None]
LOGITS = (len(PREFIXES), 3)
"""Shape of a policy's logits for one prompt."""
MAY_GO_ON = torch.tensor([len(prefix) + 1 < DEPTH for prefix in PREFIXES])


def _index(which: Callable[[tuple[int, ...], int], int]) -> Tensor:
    return torch.tensor([[which(r, t) if t < len(r) else 0 for t in range(DEPTH)] for r in RESPONSES])


PREFIX_OF = _index(lambda response, t: PREFIXES.index(response[:t]))
TOKEN_OF = _index(lambda response, t: response[t])


def token_log_probs(logits: Tensor) -> Tensor:
    """Return log π(y_t | y_<t), ``[prompt, response, token]``, from logits ``[prompt, prefix, 3]``."""
    going_on = torch.stack([MAY_GO_ON, MAY_GO_ON, torch.ones_like(MAY_GO_ON)], -1)
    log_probs = torch.log_softmax(logits.masked_fill(~going_on, -torch.inf), -1)
    return torch.where(MASK, log_probs[:, PREFIX_OF, TOKEN_OF], 0.0)


def distribution(token_values: Tensor) -> Tensor:
    """Return π(y), ``[prompt, response]``."""
    return token_values.sum(-1).exp()


@dataclass(frozen=True)
class World:
    """Everything that is fixed while a policy is trained: rewards and other policies, random by a seed.

    Args:
        seed: of the random numbers.
        prompts: number of prompts.
    """

    seed: int = 0
    prompts: int = 2

    def _policy(self, salt: int, scale: float) -> Tensor:
        draw = torch.Generator().manual_seed(100 * self.seed + salt)
        return token_log_probs(scale * torch.randn(self.prompts, *LOGITS, generator=draw, dtype=torch.float64))

    @cached_property
    def reward(self) -> Tensor:
        """Reward r(x, y)."""
        draw = torch.Generator().manual_seed(100 * self.seed)
        return torch.randn(self.prompts, len(RESPONSES), generator=draw, dtype=torch.float64)

    @cached_property
    def reference(self) -> Tensor:
        """Log-probability of each token under π_ref; some tokens are more likely than 0.3, some less."""
        return self._policy(1, 1.0)

    @cached_property
    def prompted(self) -> Tensor:
        """Log-probability log π(y_t | p ⊕ x, y_<t) of a fixed policy under the quality prompt."""
        return self._policy(2, 1.0)

    @cached_property
    def prompted_reference(self) -> Tensor:
        """Log-probability of each token under the reference with the quality prompt."""
        return self._policy(3, 0.5)

    @cached_property
    def raters_see(self) -> Tensor:
        """Distribution μ(y | x) that both responses of a pair are sampled from; it is not the reference."""
        return distribution(self._policy(4, 0.7))


@dataclass(frozen=True)
class Pairs:
    """All ordered pairs of responses to each prompt, sampled independently from μ and labelled by Bradley–Terry.

    Args:
        world: the world.
        opponents: μ, ``[prompt, response]``.
        flipped: share of the labels that are flipped, independently of the responses.
    """

    world: World
    opponents: Tensor
    flipped: float = 0.0

    @cached_property
    def probability(self) -> Tensor:
        """Probability that two responses are sampled, in any order, and the first is preferred, ``[pair]``.

        It sums to 1 over the pairs of a prompt.
        """
        return 2 * self.drawn * ((1 - self.flipped) * self.preferred + self.flipped * (1 - self.preferred))

    @cached_property
    def drawn(self) -> Tensor:
        """Probability that two responses are sampled in this order, ``[pair]``; it sums to 1 for each prompt."""
        return (self.opponents[:, :, None] * self.opponents[:, None]).flatten()

    @cached_property
    def preferred(self) -> Tensor:
        """Bradley–Terry probability that the first response is preferred to the second, ``[pair]``."""
        return torch.sigmoid(self.world.reward[:, :, None] - self.world.reward[:, None]).flatten()

    def _both(self, token_values: Tensor) -> Tensor:
        """Return ``[pair, 2, token]`` from ``[prompt, response, token]``."""
        count = len(RESPONSES)
        chosen = token_values[:, :, None].expand(-1, -1, count, -1)
        rejected = token_values[:, None].expand(-1, count, -1, -1)
        return torch.stack([chosen, rejected], 3).flatten(0, 2)

    def records(self, policy: Tensor, prompted: Tensor | None = None) -> PairLogProbs:
        """Return the input of an objective from log-probabilities of tokens, ``[prompt, response, token]``."""
        world = self.world
        mask = self._both(MASK.expand(world.prompts, -1, -1))
        under_prompt = PairLogProbs(
            policy=self._both(world.prompted if prompted is None else prompted).detach(),
            reference=self._both(world.prompted_reference if prompted is None else world.reference),
            mask=mask,
        )
        return PairLogProbs(
            policy=self._both(policy), reference=self._both(world.reference), mask=mask, prompted=under_prompt
        )

    def expectation(self, objective: Objective, policy: Tensor, prompted: Tensor | None = None) -> Tensor:
        """Return the exact expected loss, summed over prompts."""
        return (self.probability * objective(self.records(policy, prompted)).loss).sum()


def minimised(loss: Callable[[Tensor], Tensor], world: World, start: Tensor | None = None) -> Tensor:
    """Return the logits of the policy that minimises a function of its token log-probabilities, in float64."""
    logits = torch.zeros(world.prompts, *LOGITS, dtype=torch.float64) if start is None else start.clone()
    logits.requires_grad_()
    solver = torch.optim.LBFGS(
        [logits],
        max_iter=600,
        history_size=30,
        tolerance_grad=1e-10,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(token_log_probs(logits))
        value.backward()
        return value

    solver.step(closure)
    return logits.detach()


def trained_on_probabilities(objective: Objective, pairs: Pairs) -> Tensor:
    """Return π(y | x) after training on pairs that have a preference probability instead of a label."""

    def loss(policy: Tensor) -> Tensor:
        records = replace(pairs.records(policy), preference_probability=pairs.preferred)
        return (pairs.drawn * objective(records).loss).sum()

    return distribution(token_log_probs(minimised(loss, pairs.world)))


def trained(objective: Objective, pairs: Pairs) -> Tensor:
    """Return π(y | x) of the tabular policy that minimises the expected loss of an objective."""
    return distribution(token_log_probs(minimised(lambda policy: pairs.expectation(objective, policy), pairs.world)))


def fixed_point(objective: Objective, pairs: Pairs, rounds: int = 18) -> Tensor:
    """Return π(y | x) at the fixed point of a policy whose prompted margin is that of its last minimum."""
    logits = torch.zeros(pairs.world.prompts, *LOGITS, dtype=torch.float64)
    for _ in range(rounds):
        last = token_log_probs(logits)
        logits = minimised(lambda policy, last=last: pairs.expectation(objective, policy, last), pairs.world, logits)
    return distribution(token_log_probs(logits))
