"""Running numbers are what an objective carries from one optimizer step to the next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lit_align.modules.step_totals import total_over_ranks
from lit_align.objectives.base import Objective
from lit_align.types import Outcome, PairBatch


class RunningNumbers:
    """The running numbers of an objective, and what the pairs of the step under way say of them.

    Args:
        objective: names the numbers and their first values, and says how they advance.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.values = {name: torch.tensor(first, dtype=torch.float64) for name, first in objective.running.items()}
        self._sums: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Forget what a step that broke off has left."""
        self._sums = {}

    def add(self, outcome: Outcome, batch: PairBatch) -> None:
        """Enter the pairs of a micro-batch."""
        weight = batch.weight.double()
        for name, observed in outcome.observed.items():
            said = (torch.where(weight > 0, observed.detach().double(), 0.0) * weight).sum()
            self._sums[name] = self._sums[name] + said if name in self._sums else said

    def advance(self, weight: float, strategy: Strategy) -> None:
        """End the step.

        Args:
            weight: of all pairs of the step, on all ranks.
            strategy: of the trainer.
        """
        observed = {name: total_over_ranks(total, strategy) / weight for name, total in self._sums.items()}
        self._sums = {}
        if self.values:
            after = self.objective.advance(self.values, {name: mean.cpu() for name, mean in observed.items()})
            self.values = {name: after[name].detach().to("cpu", torch.float64) for name in self.values}

    def resume(self, values: Mapping[str, Tensor]) -> None:
        """Go on from the numbers of a checkpoint, unless they are those of another objective."""
        if values.keys() == self.values.keys():
            self.values = {name: value.to("cpu", torch.float64) for name, value in values.items()}
