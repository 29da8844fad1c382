"""The interface of what an on-policy run does in its own way for each kind of objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import Metric

from lit_align.metrics.rollouts import RolloutMetrics
from lit_align.models.sampling import Sampling
from lit_align.modules.base import LitPolicy
from lit_align.modules.online.rollout import RolloutBatch
from lit_align.objectives.base import Needs
from lit_align.online.objective import OnlineNeeds
from lit_align.types import PairBatch


class Accumulator(ABC):
    """Accumulates the gradient of the summed loss of some prompts of a rollout."""

    @abstractmethod
    def __call__(self, prompts: Sequence[int], most: int, backward: Callable[[Tensor], None]) -> None:
        """Call ``backward`` once for each micro-batch; every process must call this together.

        Args:
            prompts: places of this process's prompts in the batch.
            most: the largest number of prompts of any process.
            backward: adds the gradient of a loss.
        """


class Learner(nn.Module, ABC):
    """Turns rollouts into gradients and metrics by one kind of objective.

    It is a submodule of the run's module, so that its metrics are on the same device.
    """

    needs: OnlineNeeds
    """What a rollout must have."""
    data_needs: Needs = Needs()
    """What the data must have beside prompts."""
    metric_names: tuple[str, ...] = ()
    """Names of the metrics of evaluation that other learners do not have."""
    margins: Mapping[str, Any] = MappingProxyType({})
    """Reward margins by length of the last evaluation, as ``MarginsByLength`` returns them; empty without pairs."""

    def cautions(self, sampling: Sampling, steps: int) -> tuple[str, ...]:
        """Return one sentence for each setting that moves the optimum in a way that a user may not expect."""
        return ()

    @abstractmethod
    def accumulator(
        self, module: LitPolicy, value_model: nn.Module | None, responses: RolloutBatch, batch: PairBatch
    ) -> Accumulator:
        """Add a rollout to the metrics of training, and return what accumulates the gradient of its prompts.

        Args:
            module: of the run.
            value_model: trained as well; None without one.
            responses: the rollout.
            batch: its prompts.
        """

    @abstractmethod
    def evaluate(
        self, module: LitPolicy, metrics: RolloutMetrics, responses: RolloutBatch, batch: PairBatch, split: str
    ) -> None:
        """Add a rollout to the metrics of evaluation."""

    @property
    def summed_metrics(self) -> dict[str, Metric]:
        """The metrics of training that a checkpoint keeps, by the prefix of their states in it."""
        return {}

    @property
    def state(self) -> Mapping[str, Tensor]:
        """What the objective carries from step to step."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of a checkpoint."""

    def after_step(self, weight: float, trainer: Trainer) -> None:
        """Advance the state after an optimizer step.

        Args:
            weight: of all pairs of the step, on all ranks.
            trainer: of the run.
        """

    def training_values(self) -> dict[str, Tensor]:
        """Compute the metrics of training since the last call, and reset them."""
        return {}

    def reset(self) -> None:
        """Discard what an interrupted step or evaluation has left."""

    def evaluation_values(self, trainer: Trainer, device: torch.device) -> dict[str, Tensor]:
        """Compute the metrics of an evaluation over all ranks."""
        return {}
