"""A window is the micro-batches of an optimizer step whose pairs depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.modules.global_batch import Judged, judge
from lit_align.objectives.base import Objective
from lit_align.types import PairBatch, PairLogProbs, PairTokens


@dataclass(frozen=True)
class Window:
    """How the micro-batches of a step are judged together and pulled one by one.

    A step of one micro-batch goes through the policy once. Otherwise all go through it without gradient, the objective
    says how hard it pulls at each log-probability, and each goes through it again and is pulled. The memory is that of
    one micro-batch, the time that of one more forward pass.

    Args:
        score: everything of a micro-batch.
        again: the policy's log-probs alone.
        seed: of the dropout of an adapter: another one in each step and rank.
        device: where the model is.
    """

    score: Callable[[PairBatch], PairLogProbs]
    again: Callable[[PairBatch], PairTokens]
    seed: int
    device: torch.device

    def judge(
        self, objective: Objective, batches: Sequence[PairBatch], trainer: Trainer
    ) -> tuple[list[Judged], list[PairLogProbs]]:
        """What the objective makes of each micro-batch among the others, and their log-probabilities.

        Args:
            objective: what is optimised.
            batches: this rank's, all of the step.
            trainer: of the run.
        """
        logps = []
        for place, batch in enumerate(batches):
            with torch.set_grad_enabled(len(batches) == 1), self._noise(place):
                logps.append(self.score(batch))
        return judge(objective, logps, batches, trainer), logps

    def pull(
        self, batches: Sequence[PairBatch], judged: Sequence[Judged], logps: Sequence[PairLogProbs], world: int
    ) -> Tensor:
        """The scalar whose gradient is that of the last micro-batch; those of the others are in the weights already.

        The backward passes in here come before DDP prepares its reduction, so they only add up; the last one, behind
        which it reduces, is the caller's.

        Args:
            batches: as in ``judge``.
            judged: what it gave.
            logps: what else it gave.
            world: number of ranks, over which DDP takes the mean.
        """
        policy = logps[0].policy
        for place, (batch, found) in enumerate(zip(batches, judged, strict=True)):
            if len(batches) > 1:
                with self._noise(place):
                    policy = self.again(batch)
            assert found.pull is not None
            total = (policy * found.pull).sum() * world
            if place < len(batches) - 1:
                pull_now(total)
        return total

    @contextmanager
    def _noise(self, place: int) -> Iterator[None]:
        """Dropout that is the same whenever the micro-batch at a place is scored; no generator is left changed."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed((self.seed * 4099 + place) % 2**63)
            yield


def pull_now(total: Tensor) -> None:
    """Add a gradient to those of the weights inside of a training step, before DDP prepares its reduction.

    Args:
        total: what to differentiate.
    """
    with torch.autocast(total.device.type, enabled=False):
        total.backward()


def portions(batch: PairBatch, tokens: int, trainer: Trainer) -> list[PairBatch]:
    """The batch in parts of about the same number of tokens; on all ranks in as many.

    Args:
        batch: the pairs.
        tokens: what a part may have, in tokens of both sides; a longer pair stands alone. 0 for one part.
        trainer: of the run.
    """
    if tokens == 0:
        return [batch]
    sizes = batch.attention_mask.sum((1, 2)).tolist()
    count = _over_ranks(math.ceil(sum(sizes) / tokens), "max", trainer)
    ends = even_ends(sizes, min(count, _over_ranks(len(sizes), "min", trainer)))
    return [batch.rows(slice(start, end)) for start, end in pairwise((0, *ends))]


def even_ends(sizes: list[int], count: int) -> list[int]:
    """Where to cut a row of sizes into ``count`` parts, none of them empty, whose sums are about the same.

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


def _over_ranks(number: int, operation: str, trainer: Trainer) -> int:
    if trainer.world_size == 1:
        return number
    value = torch.tensor(number, device=trainer.strategy.root_device)
    return int(torch.as_tensor(trainer.strategy.reduce(value, reduce_op=operation)))
