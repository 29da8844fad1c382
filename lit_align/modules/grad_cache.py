"""Splitting an optimizer step: chunks of a batch, and cached gradients of losses that need all pairs of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.modules.global_batch import evaluate_globally
from lit_align.objectives.base import Objective
from lit_align.types import LossOutput, PairBatch, PairLogProbs, PairTokens


@dataclass(frozen=True)
class GradCache:
    """Backpropagates a batch-level loss through the micro-batches of an optimizer step, one at a time.

    A step of one micro-batch goes through the policy once. Otherwise all micro-batches first go through it without
    gradient, the objective gives the gradient with respect to every log-probability, and each micro-batch goes through
    the policy again and is backpropagated with it. This takes the memory of one micro-batch and the time of one more
    forward pass (gradient caching, arXiv:2101.06983).

    Args:
        log_probs: computes everything the objective needs of a micro-batch.
        policy_alone: computes the policy's log-probabilities alone.
        seed: of an adapter's dropout; differs between steps and ranks.
        device: of the model.
        beside: a loss to add to that of a micro-batch which has just been read with gradients.
    """

    log_probs: Callable[[PairBatch], PairLogProbs]
    policy_alone: Callable[[PairBatch], PairTokens]
    seed: int
    device: torch.device
    beside: Callable[[PairBatch], Tensor | float] = lambda batch: 0.0

    def evaluate(self, objective: Objective, batches: Sequence[PairBatch], trainer: Trainer) -> list[LossOutput]:
        """Evaluate the objective on all pairs of the step; see `evaluate_globally`."""
        logps = []
        for number, batch in enumerate(batches):
            with torch.set_grad_enabled(len(batches) == 1), self._dropout(number):
                logps.append(self.log_probs(batch))
        return evaluate_globally(objective, logps, batches, trainer)

    def backward(self, batches: Sequence[PairBatch], outputs: Sequence[LossOutput], world_size: int) -> Tensor:
        """Backpropagate all micro-batches but the last, and return the loss of the last.

        DDP prepares its reduction after ``training_step``, so the backward passes in here only accumulate.
        """
        if len(batches) == 1:
            return (outputs[0].loss + self.beside(batches[0])) * world_size
        for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
            with self._dropout(number):
                policy = self.policy_alone(batch)
            loss = ((policy * output.grad_logps).sum() + self.beside(batch)) * world_size
            if number < len(batches) - 1:
                backward_now(loss)
        return loss

    @contextmanager
    def _dropout(self, number: int) -> Iterator[None]:
        """Use the same dropout each time a micro-batch is read, and leave the global generators as they were."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.seed * 4099 + number) % 2**63)
            yield


def backward_now(loss: Tensor) -> None:
    """Accumulate gradients inside a training step, before DDP prepares its reduction."""
    with torch.autocast(loss.device.type, enabled=False):
        loss.backward()


def split_into_chunks(batch: PairBatch, tokens: int, trainer: Trainer) -> list[PairBatch]:
    """Split a batch into chunks of about equally many tokens; into equally many on all ranks.

    Args:
        batch: the pairs.
        tokens: most tokens of a chunk, of both sides; a longer pair is a chunk by itself. 0 does not split.
        trainer: of the run.
    """
    if tokens == 0:
        return [batch]
    sizes = batch.on_host.attention_mask.sum((1, 2)).tolist()
    count = reduce_number(math.ceil(sum(sizes) / tokens), "max", trainer)
    ends = even_ends(sizes, min(count, reduce_number(len(sizes), "min", trainer)))
    return [batch.rows(slice(start, end)) for start, end in pairwise((0, *ends))]


def even_ends(sizes: list[int], count: int) -> list[int]:
    """Return where to cut a list of sizes into ``count`` non-empty parts with about the same sums.

    >>> even_ends([5, 1, 1, 1, 4, 4], count=3)
    [2, 5, 6]
    """
    total, filled = sum(sizes), 0
    ends: list[int] = []
    for place, size in enumerate(sizes, start=1):
        filled += size
        done, left = len(ends), len(sizes) - place
        full = filled * count >= total * (done + 1)
        if done < count - 1 and ((full and left >= count - done - 1) or left == count - done - 1):
            ends.append(place)
    return [*ends, len(sizes)]


def reduce_number(number: int, operation: str, trainer: Trainer) -> int:
    """Reduce a number over all processes; ``operation`` is ``max``, ``min`` or ``sum``."""
    if trainer.world_size == 1:
        return number
    value = torch.tensor(number, device=trainer.strategy.root_device)
    return int(torch.as_tensor(trainer.strategy.reduce(value, reduce_op=operation)))
