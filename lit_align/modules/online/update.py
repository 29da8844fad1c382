"""An update is one optimizer step on some of the responses of a rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lit_align.models.lm_head.patch import sparse_embedding_grad
from lit_align.modules.online.checks import Settings
from lit_align.modules.online.rollout import Drawn
from lit_align.modules.step_totals import NonFiniteError, run_data, total_norm, total_over_ranks
from lit_align.online.objective import Experience, OnlineOutcome
from lit_align.types import PairBatch, PairLogProbs, RolloutTokens

if TYPE_CHECKING:
    from lit_align.modules.online.module import LitOnline


class Update:
    """Takes optimizer steps on a rollout.

    The gradient of a step is that of the sum of all its losses, over the sum of all their units, whatever the
    micro-batches or the number of processes. Every process makes the same number of passes: one that has fewer
    responses fills up with a copy of weight 0.

    Args:
        module: whose policy is moved.
        drawn: the responses.
        experience: what is learned from them.
        settings: responses to each prompt, and per pass.
    """

    def __init__(self, module: LitOnline, drawn: Drawn, experience: Experience, settings: Settings) -> None:
        self.module = module
        self.drawn = drawn
        self.experience = experience
        self.each = settings.responses
        self.at_once = settings.micro_batch
        self._bad: list[int] = []

    def __call__(self, prompts: Sequence[int], most: int) -> None:
        """One optimizer step.

        Args:
            prompts: places of this process's prompts in the batch.
            most: how many the process with the most of them has.

        Raises:
            NonFiniteError: the gradient is not finite; the weights are as they were.
        """
        module = self.module
        mine = [place * self.each + number for place in prompts for number in range(self.each)]
        passes = max(1, math.ceil(most * self.each / self.at_once))
        units = torch.zeros((), device=module.device, dtype=torch.float64)
        optimizer: Any = module.optimizers()
        optimizer.zero_grad()
        self._bad = []
        for number in range(passes):
            rows = mine[number * self.at_once : (number + 1) * self.at_once]
            loss, charged = self._pass(rows or [0], filler=not rows)
            units = units + charged
            module.manual_backward(loss * module.trainer.world_size)
        self._step(optimizer, total_over_ranks(units, module.trainer.strategy))

    def _pass(self, rows: list[int], filler: bool) -> tuple[Tensor, Tensor]:
        """The summed loss of some responses, and their units."""
        module, which = self.module, torch.tensor(rows, device=self.module.device)
        batch = self.drawn.batch.rows(which)
        experience = _narrowed(self.experience.rows(which), int(batch.lengths.max()))
        weight = torch.zeros_like(experience.rollout.weight) if filler else experience.rollout.weight

        def loss_fn(responses: slice, logps: PairLogProbs) -> Tensor:
            return (module.objective(experience.rows(responses), logps.policy[:, 0]).policy * weight[responses]).sum()

        reader = module.readers.of(module.policy, batch)
        with sparse_embedding_grad(module.policy):
            if reader.fuses:
                output = reader.fused_loss(batch, loss_fn)
                policy_loss, logps = output.loss, output.logps
            else:
                logps = reader(batch)
                policy_loss = loss_fn(slice(0, len(rows)), logps)
        now = logps.policy[:, 0].detach()
        values = None if module.value_model is None else module.readers.values(module.value_model, batch)
        outcome = module.objective(experience, now, values)
        self._watch(experience, now, outcome, weight, batch)
        loss = policy_loss if outcome.value is None else policy_loss + (outcome.value * weight).sum()
        return loss, (outcome.units.double() * weight).sum()

    def _watch(
        self, experience: Experience, now: RolloutTokens, outcome: OnlineOutcome, weight: Tensor, batch: PairBatch
    ) -> None:
        mask, apart = experience.rollout.mask, now - experience.rollout.policy
        kl = torch.where(mask, (-apart).expm1() + apart, 0.0)
        metrics, units = self.module.train_metrics, outcome.units
        clipped = self.module.objective.shares_clipped(experience, now)
        metrics.add({"update/clipped": clipped, "update/kl": kl.sum(-1)}, weight)
        losses = {"loss/policy": outcome.policy} | ({} if outcome.value is None else {"loss/value": outcome.value})
        metrics.add({name: loss / units for name, loss in losses.items()}, weight * units)
        total = outcome.policy if outcome.value is None else outcome.policy + outcome.value
        bad = ~total.detach().isfinite() & (weight > 0)
        self._bad += [int(row) for row in batch.index[bad]]

    def _step(self, optimizer: Any, units: Tensor) -> None:
        module = self.module
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_div_(gradients, float(units))
        norm = total_norm(gradients)
        if not math.isfinite(float(norm)):
            names = [run_data(module.trainer).rows["train"][row].where for row in self._bad[:10]]
            raise NonFiniteError(module.global_step, module.global_rank, float(norm), self._bad, names)
        if module.gradient_clip is not None:
            torch._foreach_mul_(gradients, min(1.0, module.gradient_clip / (float(norm) + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()  # nothing needs them while the next responses are drawn
        module.gradient_norm = norm
        if module.reference is not None:
            module.reference.after_step(module.policy, module.global_step)
        scheduler: Any = module.lr_schedulers()
        scheduler.step()


def _narrowed(experience: Experience, width: int) -> Experience:
    """Responses no wider than the longest of them."""
    rollout = experience.rollout

    def cut(values: Tensor | None) -> Any:
        return None if values is None else F.pad(values, (0, max(0, width - values.shape[1])))[:, :width]

    rollout = type(rollout)(
        policy=cut(rollout.policy),
        mask=rollout.mask[:, :width],
        score=rollout.score,
        group=rollout.group,
        weight=rollout.weight,
        reference=cut(rollout.reference),
        values=cut(rollout.values),
        greedy=rollout.greedy,
    )
    return Experience(rollout, cut(experience.rewards), cut(experience.advantage), cut(experience.returns))


def weight_groups(policy: nn.Module, value: nn.Module | None, rate: float | None) -> list[dict[str, Any]]:
    """What trains of policy and value model, as an optimizer takes it.

    Args:
        policy: the policy.
        value: the value model; None without one.
        rate: learning rate of the value model; None for the optimizer's own.
    """
    groups: list[dict[str, Any]] = [{"params": [p for p in policy.parameters() if p.requires_grad]}]
    if value is not None:
        groups.append({"params": list(value.parameters()), **({} if rate is None else {"lr": rate})})
    return groups


def batches_of_a_run(trainer: Trainer, steps: int) -> int:
    """How many rollouts a fit will draw; a run ends behind the one in which ``max_steps`` is reached.

    Args:
        trainer: of the run; its ``max_steps`` counts optimizer steps.
        steps: optimizer steps per rollout.
    """
    most = math.ceil(trainer.max_steps / steps) if trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        if most is None:
            raise ValueError(
                "trainer.max_epochs and trainer.max_steps are both open: set one, the schedule needs an end"
            )
        return most
    data = run_data(trainer)
    limit = trainer.limit_train_batches
    batches = min(data.train_batches, limit) if isinstance(limit, int) else int(data.train_batches * limit)
    total = batches * trainer.max_epochs
    return total if most is None else min(total, most)


@final
@dataclass(frozen=True)
class Minibatches:
    """The prompts of one batch, of all processes together, dealt out to optimizer steps.

    The prompt at place ``j`` of process ``r`` stands at place ``j · world + r`` of the whole batch, and where it is
    dealt to depends on that place alone.

    Args:
        prompts: of all processes.
        number: optimizer steps per pass; at most one per prompt.
        rank: number of this process.
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

    def _step_of(self, seed: int) -> list[int]:
        """The step that each place of the whole batch is dealt to."""
        order = torch.randperm(self.prompts, generator=torch.Generator().manual_seed(seed)).tolist()
        return [place * self.steps // self.prompts for place in order]

    def local(self, seed: int) -> list[list[int]]:
        """The places of this process's prompts in each step; a step may have none of them.

        Args:
            seed: another one deals otherwise.
        """
        mine = list(enumerate(self._step_of(seed)[self.rank :: self.world]))
        return [[place for place, step in mine if step == number] for number in range(self.steps)]

    def most(self, seed: int) -> list[int]:
        """The largest number of prompts that any process has in each step.

        Args:
            seed: as for ``local``.
        """
        shares = [self._step_of(seed)[rank :: self.world] for rank in range(self.world)]
        return [max(share.count(number) for share in shares) for number in range(self.steps)]


@dataclass(frozen=True)
class Sums:
    """Sums that a resumed run goes on from: those of metrics, and tokens.

    Args:
        metrics: name to a metric whose states are sums.
        tokens: of this process so far.
    """

    metrics: Mapping[str, Metric]
    tokens: Tensor

    def state(self, strategy: Strategy) -> dict[str, Tensor]:
        """The sums over all ranks; every rank must ask.

        Args:
            strategy: of the run.
        """
        parts: dict[str, Any] = {"tokens": self.tokens}
        for prefix, metric in self.metrics.items():
            parts |= {f"{prefix}.{name}": value for name, value in metric.metric_state.items()}
        return {name: total_over_ranks(value, strategy) for name, value in parts.items()}

    def restore(self, saved: Mapping[str, Tensor], device: torch.device) -> None:
        """Take the sums of metrics over; rank zero alone does, so that the totals are right.

        Args:
            saved: what ``state`` gave.
            device: where the metrics are.
        """
        for prefix, metric in self.metrics.items():
            for name in metric.metric_state:
                setattr(metric, name, saved[f"{prefix}.{name}"].to(device))


def tokens_of_rank(saved: Mapping[str, Tensor], rank: int) -> Tensor:
    """The saved number of tokens for rank zero, and none for the others."""
    return saved["tokens"] if rank == 0 else torch.zeros_like(saved["tokens"])
