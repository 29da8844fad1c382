"""Training on sampled responses: which go into each optimizer step, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lit_align.metrics.rollouts import RolloutMetrics
from lit_align.models.lm_head.patch import sparse_embedding_grad
from lit_align.models.sampling import Sampling
from lit_align.modules.base import LitPolicy
from lit_align.modules.online.learner import Accumulator, Learner
from lit_align.modules.online.rollout import RolloutBatch
from lit_align.online.objective import Experience, OnlineObjective, OnlineOutcome
from lit_align.online.pairing import BestAgainstWorst, PairLabels, ResponsePairing
from lit_align.types import PairBatch, PairLogProbs, RolloutTokens


class ResponseLearner(Learner):
    """Trains by an online objective, on each response with its rewards and advantages.

    Args:
        objective: of the run.
        pairing: ``model.pairing``, which has no effect.
        labels: ``model.labels``, which has no effect.
        micro_batch: responses per forward pass.
        has_opponent: whether the score of a response is its probability to win against an opponent's.

    Raises:
        ValueError: ``pairing`` or ``labels`` is set, or a response alone needs a score and has none.
    """

    def __init__(
        self,
        objective: OnlineObjective,
        pairing: ResponsePairing,
        labels: PairLabels,
        micro_batch: int,
        has_opponent: bool,
    ) -> None:
        super().__init__()
        if (pairing, labels) != (BestAgainstWorst(), PairLabels()):
            name = type(objective).__name__
            raise ValueError(f"model.pairing and model.labels have no effect on {name}, which takes no pairs")
        if has_opponent and objective.needs.greedy:
            raise ValueError(
                "model.opponent: scores are of two responses, and GreedyBaseline needs that of a single one"
            )
        self.objective = objective
        self.micro_batch = micro_batch
        self.needs = objective.needs

    @override
    def cautions(self, sampling: Sampling, steps: int) -> tuple[str, ...]:
        cautions = list(self.objective.cautions)
        for name, value in (("top_p", sampling.top_p), ("temperature", sampling.temperature)):
            if value != 1 and self.objective.matches_preferences:
                cautions.append(
                    f"model.sampling.{name} is {value:g}: the responses are not the policy's own, and preference "
                    "matching is about the policy's own distribution; take 1"
                )
        if self.needs.own_samples and steps > 1:
            cautions.append(
                f"the surrogate is right only for the first of the {steps} optimizer steps on a rollout; take "
                "Clipped, or set model.epochs and model.minibatches to 1"
            )
        return tuple(cautions)

    @override
    def accumulator(
        self, module: LitPolicy, value_model: nn.Module | None, responses: RolloutBatch, batch: PairBatch
    ) -> GradientAccumulator:
        return GradientAccumulator(
            objective=self.objective,
            module=module,
            value_model=value_model,
            responses=responses,
            experience=self._add(responses, module.train_metrics),
            count=len(responses.texts.responses) // len(batch.index),
            micro_batch=self.micro_batch,
        )

    @override
    def evaluate(
        self, module: LitPolicy, metrics: RolloutMetrics, responses: RolloutBatch, batch: PairBatch, split: str
    ) -> None:
        self._add(responses, metrics)

    def _add(self, responses: RolloutBatch, metrics: RolloutMetrics) -> Experience:
        experience = self.objective.experience(responses.rollout)
        metrics.update(responses.rollout, responses.ended, responses.texts.responses, experience)
        return experience


@dataclass(frozen=True)
class GradientAccumulator(Accumulator):
    """Accumulates the gradient of the summed loss of some responses of a rollout.

    The number of backward passes is the same in every process: one with fewer responses adds a copy of weight 0.

    Args:
        objective: from log-probabilities and values to losses.
        module: has the policy, and the metrics and totals of training.
        value_model: trained as well; None without one.
        responses: the rollout.
        experience: rewards and advantages of its responses.
        count: responses to each prompt.
        micro_batch: responses per forward pass.
    """

    objective: OnlineObjective
    module: LitPolicy
    value_model: nn.Module | None
    responses: RolloutBatch
    experience: Experience
    count: int
    micro_batch: int

    @override
    def __call__(self, prompts: Sequence[int], most: int, backward: Callable[[Tensor], None]) -> None:
        places = [prompt * self.count + number for prompt in prompts for number in range(self.count)]
        for start in range(0, max(1, most * self.count), self.micro_batch):
            rows = places[start : start + self.micro_batch]
            backward(self._loss(rows or [0], is_filler=not rows))

    def _loss(self, rows: list[int], is_filler: bool) -> Tensor:
        """Compute the summed loss of some responses, and add them to metrics and totals."""
        which = torch.tensor(rows)
        batch = self.responses.batch.rows(which)
        on_device = which.to(batch.index.device, non_blocking=True)
        experience = _narrowed(self.experience.rows(on_device), int(batch.on_host.lengths.max()))
        weight = torch.zeros_like(experience.rollout.weight) if is_filler else experience.rollout.weight
        loss, log_probs = self._policy_loss(batch, experience, weight)
        values = None if self.value_model is None else self.module.readers.values(self.value_model, batch)
        outcome = self.objective(experience, log_probs, values)
        self._update_metrics(experience, log_probs, outcome, weight)
        loss_of_each = outcome.policy
        if outcome.value is not None:
            loss, loss_of_each = loss + (outcome.value * weight).sum(), loss_of_each + outcome.value
        units = (outcome.units.double() * weight).sum()
        self.module.step_totals.add_losses(torch.where(weight > 0, loss_of_each.detach(), 0.0), batch.index, units)
        return loss

    def _policy_loss(self, batch: PairBatch, experience: Experience, weight: Tensor) -> tuple[Tensor, RolloutTokens]:
        """Compute the summed policy loss, and the log-probabilities without gradient; logits are formed once."""

        def loss_fn(responses: slice, logps: PairLogProbs) -> Tensor:
            return (self.objective(experience.rows(responses), logps.policy[:, 0]).policy * weight[responses]).sum()

        reader = self.module.readers.of(self.module.policy, batch)
        with sparse_embedding_grad(self.module.policy):
            if reader.fuses:
                output = reader.fused_loss(batch, loss_fn)
                return output.loss, output.logps.policy[:, 0].detach()
            logps = reader(batch)
            return loss_fn(slice(0, len(batch.index)), logps), logps.policy[:, 0].detach()

    def _update_metrics(
        self, experience: Experience, now: RolloutTokens, outcome: OnlineOutcome, weight: Tensor
    ) -> None:
        difference = now - experience.rollout.policy
        kl = torch.where(experience.rollout.mask, (-difference).expm1() + difference, 0.0)
        clipped = self.objective.shares_clipped(experience, now)
        metrics: RolloutMetrics = self.module.train_metrics
        metrics.add({"update/clipped": clipped, "update/kl": kl.sum(-1)}, weight)
        losses = {"loss/policy": outcome.policy} | ({} if outcome.value is None else {"loss/value": outcome.value})
        metrics.add({name: loss / outcome.units for name, loss in losses.items()}, weight * outcome.units)


def _narrowed(experience: Experience, width: int) -> Experience:
    """Cut or pad all token axes to the longest of the responses."""

    def resized(record: object) -> dict[str, Tensor]:
        columns = {field.name: getattr(record, field.name) for field in fields(record)}  # type: ignore[arg-type]
        return {
            name: F.pad(value, (0, max(0, width - value.shape[1])))[:, :width]
            for name, value in columns.items()
            if isinstance(value, Tensor) and value.ndim == 2
        }

    return replace(
        experience, rollout=replace(experience.rollout, **resized(experience.rollout)), **resized(experience)
    )


@final
@dataclass(frozen=True)
class Minibatches:
    """The prompts of one batch of all processes, distributed over optimizer steps.

    The prompt at place ``j`` of process ``r`` has the place ``j · world + r`` in the whole batch, and its step depends
    on that place alone.

    Args:
        prompts: number of prompts of all processes.
        number: optimizer steps per pass; at most one per prompt.
        rank: of this process.
        world: number of processes.

    >>> two = [Minibatches(6, 2, rank, 2).local(seed=0) for rank in (0, 1)]
    >>> one = Minibatches(6, 2).local(seed=0)
    >>> [sorted([2 * j for j in a] + [2 * j + 1 for j in b]) for a, b in zip(*two)] == one
    True
    """

    prompts: int
    number: int
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps per pass."""
        return max(1, min(self.number, self.prompts))

    def local(self, seed: int) -> list[list[int]]:
        """Return the places of this process's prompts in each step; a step may have none of them.

        Args:
            seed: of the permutation.
        """
        steps = self._step_of(seed)[self.rank :: self.world]
        return [[place for place, step in enumerate(steps) if step == number] for number in range(self.steps)]

    def most(self, seed: int) -> list[int]:
        """Return the largest number of prompts of any process in each step.

        Args:
            seed: as for ``local``.
        """
        shares = [self._step_of(seed)[rank :: self.world] for rank in range(self.world)]
        return [max(share.count(number) for share in shares) for number in range(self.steps)]

    def _step_of(self, seed: int) -> list[int]:
        """Return the step of each place of the whole batch."""
        order = torch.randperm(self.prompts, generator=torch.Generator().manual_seed(seed)).tolist()
        return [place * self.steps // self.prompts for place in order]
