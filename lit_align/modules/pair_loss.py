"""The loss of preference pairs under an objective: by its definition, and without keeping logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lit_align.models import HeadGradientAccumulator, Reference
from lit_align.models.lm_head.patch import sparse_embedding_grad
from lit_align.modules.log_probs import LogProbReaders, LogProbs
from lit_align.modules.objective_state import ObjectiveState
from lit_align.types import LossOutput, PairBatch, PairLogProbs, PairSeed, concatenate, map_tensors


@dataclass(frozen=True)
class PairLoss:
    r"""Computes $\sum_i w_i L_i$ over the pairs of a batch, and what metrics are computed from.

    Args:
        policy: the trained model.
        reference: where the frozen log-probabilities come from; None where none are needed.
        readers: read the models.
        state: of the objective, and the objective itself.
        pair_seed: gives the seeds of a batch; see ``PairLogProbs``.
    """

    policy: nn.Module
    reference: Reference | None
    readers: LogProbReaders
    state: ObjectiveState
    pair_seed: Callable[[PairBatch], PairSeed]

    @property
    def reader(self) -> LogProbs:
        """What reads the log-probabilities that the objective needs."""
        return LogProbs(self.state.objective, self.policy, self.reference, self.readers)

    def log_probs(self, batch: PairBatch) -> PairLogProbs:
        """Compute the log-probabilities of both sides under policy and reference, and what the objective needs."""
        return self.reader(batch, self.pair_seed(batch), self.state.values)

    def __call__(self, batch: PairBatch) -> LossOutput:
        r"""Compute the loss: the definition of what is minimised.

        The gradient is divided by the weight of all pairs of the optimizer step before the step is taken.
        """
        logps = self.log_probs(batch)
        outcome = self.state.objective(logps)
        loss = (outcome.loss * batch.weight).sum()
        (grad,) = torch.autograd.grad(loss, logps.policy, retain_graph=True)
        return LossOutput(loss, map_tensors(logps, torch.detach), grad, map_tensors(outcome, torch.detach))

    def fused(self, batch: PairBatch, accumulator: HeadGradientAccumulator | None = None) -> LossOutput:
        """Compute the same without keeping logits; only for objectives whose pairs are independent.

        Falls back to the definition where the model's head or layout does not allow it.

        Args:
            batch: the pairs.
            accumulator: shared by the chunks of a micro-batch; None for a batch in one piece.
        """
        reader = self.readers.of(self.policy, batch)
        if not reader.fuses:
            return self(batch)
        objective = self.state.objective
        context = self.reader.context(batch, self.pair_seed(batch), self.state.values)
        outcomes = []

        def loss_fn(pairs: slice, policy: PairLogProbs) -> Tensor:
            logps = replace(context.rows(pairs), policy=policy.policy, collision=policy.collision)
            outcome = objective(logps)
            outcomes.append(map_tensors(outcome, torch.detach))
            return (outcome.loss * batch.weight[pairs]).sum()

        with sparse_embedding_grad(self.policy):
            output = reader.fused_loss(batch, loss_fn, objective.needs.collision, accumulator)
        logps = replace(context, policy=output.logps.policy, collision=output.logps.collision)
        return replace(output, logps=logps, outcome=concatenate(outcomes))
