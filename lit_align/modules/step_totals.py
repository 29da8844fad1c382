"""Totals of an optimizer step, checks that it is finite, and the number of steps of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_align.compat.lightning import callbacks_of, is_inside_batch
from lit_align.models.sharding import all_finite
from lit_align.types import Outcome, PairBatch


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite. Raised before the optimizer step, so the weights are unchanged.

    Args:
        step: number of optimizer steps taken; the message counts the one that was not, as metrics do.
        rank: the process that raises.
        norm: the gradient norm.
        rows: positions in the training data of this process's pairs whose loss is not finite.
        names: file and line of these rows; their positions are shown if empty.
    """

    def __init__(self, step: int, rank: int, norm: float, rows: list[int], names: Sequence[str] = ()) -> None:
        self.step, self.rank, self.norm, self.rows = step, rank, norm, rows
        shown = ", ".join((names or [str(row) for row in rows])[:10])
        report = f"the loss is not finite of rows {shown}" if rows else "every loss of this process is finite"
        super().__init__(
            f"step {step + 1}, rank {rank}: gradient norm is {norm}; {report}. The weights are unchanged: see the "
            "rows, lower the learning rate, or clip (trainer.gradient_clip_val)"
        )


class NonFiniteWeightsError(RuntimeError):
    """A weight is not finite after an optimizer step. Raised before anything is saved.

    Args:
        step: number of optimizer steps taken.
        rank: the process that raises.
        name: of this process's first non-finite weight, if it has one.
    """

    def __init__(self, step: int, rank: int, name: str | None) -> None:
        super().__init__(step, rank, name)
        self.step, self.rank, self.name = step, rank, name

    def __str__(self) -> str:
        report = "every weight of this process is finite" if self.name is None else f"weight {self.name} is not finite"
        return (
            f"step {self.step}, rank {self.rank}: {report} after the optimizer step. Nothing was saved after it, "
            "and the existing checkpoints are good: lower the learning rate, or clip (trainer.gradient_clip_val)"
        )


BATCHES_IN_STEP = "batches_in_step"
"""Key of a checkpoint: how many batches of an optimizer step were accumulated when it was written."""


class StepTotals:
    """Accumulates the weight, losses and time of the current optimizer step, and the tokens of all steps."""

    def __init__(self) -> None:
        self.weight = torch.zeros((), dtype=torch.float64)
        self.tokens = torch.zeros((), dtype=torch.int64)
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._under_way = False
        self.begun = 0
        self._started = 0.0
        self._seconds = 0.0
        self._rated = 0

    def reset(self) -> None:
        """Discard what an interrupted step has left."""
        self.weight = torch.zeros_like(self.weight)
        self._rows = []
        self._under_way = False
        self.begun = 0

    def start(self) -> None:
        """Count a batch of the step, and start the clock unless the step is already under way."""
        self.begun += 1
        if not self._under_way:
            self._under_way = True
            self._started = time.monotonic()

    def resume(self, tokens: Tensor, total: int) -> None:
        """Continue from ``tokens`` of this process and ``total`` of all."""
        self.tokens, self._rated = tokens, total

    @property
    def under_way(self) -> bool:
        """Whether a step has started and not finished."""
        return self._under_way

    def rate(self, tokens: int) -> float:
        """Return tokens per second of optimizer steps since the last call, without validation and sampling."""
        new, seconds = tokens - self._rated, self._seconds
        self._rated, self._seconds = tokens, 0.0
        return new / seconds if seconds > 0 else 0.0

    def add(self, outcome: Outcome, batch: PairBatch) -> None:
        """Add a chunk of pairs."""
        self.add_losses(outcome.loss.detach(), batch.index, batch.weight.sum())
        self.add_tokens(batch)

    def add_losses(self, loss: Tensor, index: Tensor, weight: Tensor) -> None:
        """Add losses of rows of the training data, and their total weight."""
        self.weight = self.weight.to(weight.device) + weight
        self._rows.append((index, loss))

    def add_tokens(self, batch: PairBatch) -> None:
        """Count the tokens of a batch; copies of weight 0 are left out."""
        real = (batch.attention_mask.sum((1, 2)) * (batch.weight > 0)).sum()
        self.tokens = self.tokens.to(real.device) + real

    @property
    def batches(self) -> int:
        """Number of chunks added to the current step."""
        return len(self._rows)

    def finish(self, norm: Tensor, step: int, rank: int) -> float:
        """Finish the step, checking that its gradient is finite, and return the norm as a number.

        Raises:
            NonFiniteError: the norm is not finite; names step, rank and the rows whose loss is not.
        """
        if not math.isfinite(number := float(norm)):
            bad = [int(i) for index, loss in self._rows for i in index[~loss.isfinite()]]
            raise NonFiniteError(step, rank, number, bad)
        self.reset()
        self._seconds += time.monotonic() - self._started
        return number


def with_names(error: NonFiniteError, data: Any) -> NonFiniteError:
    """Return the same error with file and line of each row, where the data module knows them.

    Args:
        error: has positions in the training data.
        data: the data module, or None.
    """
    if data is None:
        return error
    names = [data.rows["train"][row].where for row in error.rows[:10]]
    return NonFiniteError(error.step, error.rank, error.norm, error.rows, names)


def total_over_ranks(value: Tensor, strategy: Strategy) -> Tensor:
    """Sum a tensor over all ranks."""
    summed = strategy.reduce(value.clone(), reduce_op="sum")
    return torch.as_tensor(summed)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all gradients, including sharded ones."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_weights(trainer: Trainer) -> None:
    """Raise in every process if a trainable weight is not finite in any.

    The gradient norm reveals non-finite weights only at the next step, and after the last step there is none.

    Raises:
        NonFiniteWeightsError: a weight is not finite.
    """
    bad: list[str] = []
    for name, parameter in trainer.lightning_module.named_parameters():
        if parameter.requires_grad and not all_finite(parameter):
            bad.append(name)
            break
    device = trainer.strategy.root_device
    if total_over_ranks(torch.tensor(float(len(bad)), device=device), trainer.strategy) > 0:
        raise NonFiniteWeightsError(trainer.global_step, trainer.global_rank, bad[0] if bad else None)


def run_data(trainer: Trainer) -> Any:
    """Return the run's data module, or None. Lightning sets the attribute without declaring it."""
    host: Any = trainer
    return host.datamodule


def batches_in_step(trainer: Trainer, totals: StepTotals) -> int:
    """Return how many batches have been accumulated for an optimizer step that is not taken yet."""
    return max(0, totals.begun - is_inside_batch(trainer))


def check_steps_are_fixed(trainer: Trainer) -> None:
    """Raise for a callback that changes the number of batches per step or their size while training.

    Raises:
        ValueError: there is one; names the key to set instead.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, GradientAccumulationScheduler | BatchSizeFinder):
            finds = isinstance(callback, BatchSizeFinder)
            raise ValueError(
                f"trainer.callbacks has {type(callback).__name__}, which changes the batches of an optimizer step "
                "during the run; the schedule and the position in the data count steps ahead. Set "
                f"{'data.batch_size, see plan' if finds else 'trainer.accumulate_grad_batches'}"
            )


def planned_steps(trainer: Trainer, steps_per_batch: int = 1) -> int:
    """Return the number of optimizer steps of a fit.

    The number of batches comes from the data module. ``trainer.estimated_stepping_batches`` would build the loader too
    early, and Lightning would lose the position that a checkpoint has restored.

    Args:
        trainer: of the run; the fit ends after the batch in which ``max_steps`` is reached.
        steps_per_batch: optimizer steps for each batch, or for each group of accumulated batches.
    """
    limit = math.ceil(trainer.max_steps / steps_per_batch) * steps_per_batch if trainer.max_steps > 0 else None
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        if limit is None:
            raise ValueError(
                "trainer.max_epochs and trainer.max_steps are both open: set one, the schedule needs an end"
            )
        return limit
    data = run_data(trainer)
    batches = data.train_batches if data is not None else trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            "the number of training batches is not known without a data module: pass Trainer.fit a datamodule, or set "
            "trainer.max_steps, and trainer.max_epochs to -1"
        )
    share = trainer.limit_train_batches
    batches = min(batches, share) if isinstance(share, int) else int(batches * share)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs * steps_per_batch
    return steps if limit is None else min(steps, limit)
