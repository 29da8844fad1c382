"""Book-keeping of optimizer steps: what went into each, whether it is finite, and how many there will be."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_align.types import Outcome, PairBatch


class NonFiniteError(RuntimeError):
    """A loss or gradient was not finite; raised before the optimizer step, so the weights are still good.

    Args:
        step: the optimizer step that was not taken.
        rank: the process that says so.
        norm: the norm of its gradient.
        rows: positions in the training data of the pairs of this process whose loss is not finite.
        names: what to call these rows; their positions if empty.
    """

    def __init__(self, step: int, rank: int, norm: float, rows: list[int], names: Sequence[str] = ()) -> None:
        self.step, self.rank, self.norm, self.rows = step, rank, norm, rows
        shown = ", ".join((names or [str(row) for row in rows])[:10])
        found = f"the loss is not finite of rows {shown}" if rows else "every loss of this process is finite"
        super().__init__(
            f"step {step}, rank {rank}: gradient norm is {norm}; {found}. The weights are unchanged: see the rows, "
            "lower the learning rate, or clip (trainer.gradient_clip_val)"
        )


class NonFiniteWeightsError(RuntimeError):
    """A weight is not finite behind an optimizer step; raised before anything is saved of it.

    Args:
        step: optimizer steps that were taken.
        rank: the process that says so.
        name: of the first such weight of this process, if it has one.
    """

    def __init__(self, step: int, rank: int, name: str | None) -> None:
        super().__init__(step, rank, name)
        self.step, self.rank, self.name = step, rank, name

    def __str__(self) -> str:
        found = "every weight of this process is finite" if self.name is None else f"weight {self.name} is not finite"
        return (
            f"step {self.step}, rank {self.rank}: {found} behind the optimizer step. Nothing is saved of it, and the "
            "checkpoints that are there are good: lower the learning rate, or clip (trainer.gradient_clip_val)"
        )


class StepLedger:
    """What has gone into the optimizer step that is being accumulated, and the tokens of all steps so far."""

    def __init__(self) -> None:
        self.weight = torch.zeros((), dtype=torch.float64)
        self.tokens = torch.zeros((), dtype=torch.int64)
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._running = False
        self._started = 0.0
        self._seconds = 0.0
        self._rated = 0

    def begin(self) -> None:
        """Forget what a step that broke off has left; its gradient is gone as well."""
        self.weight = torch.zeros_like(self.weight)
        self._rows = []
        self._running = False

    def start(self) -> None:
        """Start the clock, unless the step is already under way."""
        if not self._running:
            self._running = True
            self._started = time.monotonic()

    def resume(self, tokens: Tensor, total: int) -> None:
        """Go on from ``tokens`` of this process and ``total`` of all."""
        self.tokens, self._rated = tokens, total

    @property
    def under_way(self) -> bool:
        """Whether a step was started and has not ended."""
        return self._running

    def rate(self, tokens: int) -> float:
        """Tokens per second of optimizer steps since the last call; validation and sampling do not count."""
        new, seconds = tokens - self._rated, self._seconds
        self._rated, self._seconds = tokens, 0.0
        return new / seconds if seconds > 0 else 0.0

    def add(self, outcome: Outcome, batch: PairBatch) -> None:
        """Enter one micro-batch."""
        self.weight = self.weight.to(batch.weight.device) + batch.weight.sum()
        real = (batch.attention_mask.sum((1, 2)) * (batch.weight > 0)).sum()
        self.tokens = self.tokens.to(real.device) + real
        self._rows.append((batch.index, outcome.loss.detach()))

    @property
    def entered(self) -> int:
        """Micro-batches of the step under way."""
        return len(self._rows)

    def close(self, norm: Tensor, step: int, rank: int) -> None:
        """End the step; the gradient norm says whether it may be taken.

        Raises:
            NonFiniteError: the norm is not finite; names step, rank and the rows whose loss is not.
        """
        if not math.isfinite(float(norm)):
            bad = [int(i) for index, loss in self._rows for i in index[~loss.isfinite()]]
            raise NonFiniteError(step, rank, float(norm), bad)
        self.begin()
        self._seconds += time.monotonic() - self._started


def with_names(error: NonFiniteError, data: Any) -> NonFiniteError:
    """The same error with file and line of each row, where the data know them.

    Args:
        error: names positions in the training data.
        data: the data module, or None.
    """
    if data is None:
        return error
    names = [data.rows["train"][row].where for row in error.rows[:10]]
    return NonFiniteError(error.step, error.rank, error.norm, error.rows, names)


def total_over_ranks(value: Tensor, strategy: Strategy) -> Tensor:
    """Sum of a tensor over all ranks."""
    summed = strategy.reduce(value.clone(), reduce_op="sum")
    return torch.as_tensor(summed)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients, also of such as are cut among processes."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def check_weights(trainer: Trainer) -> None:
    """Raise in every process if a weight that trains is not finite in any.

    The gradient norm tells what a step has destroyed only at the next one, and the last step has none.

    Args:
        trainer: of the run.

    Raises:
        NonFiniteWeightsError: a weight is not finite.
    """
    bad: list[str] = []
    for name, parameter in trainer.lightning_module.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if parameter.requires_grad and not bool(local.isfinite().all()):
            bad.append(name)
            break
    device = trainer.strategy.root_device
    if total_over_ranks(torch.tensor(float(len(bad)), device=device), trainer.strategy) > 0:
        raise NonFiniteWeightsError(trainer.global_step, trainer.global_rank, bad[0] if bad else None)


def run_data(trainer: Trainer) -> Any:
    """The run's data module, or None; Lightning sets the attribute without declaring it."""
    host: Any = trainer
    return host.datamodule


def optimizer_steps(trainer: Trainer) -> int:
    """How many optimizer steps a fit will take.

    Asks the data module for its number of batches instead of ``trainer.estimated_stepping_batches``, which builds the
    loader too early and makes Lightning forget the position a checkpoint has restored.
    """
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        return trainer.max_steps if trainer.max_steps > 0 else _unknown()
    data = run_data(trainer)
    batches = data.train_batches if data is not None else trainer.num_training_batches
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def _unknown() -> int:
    raise ValueError("trainer.max_epochs and trainer.max_steps are both open: set one, the schedule needs an end")
