"""The state that an objective carries from one optimizer step to the next."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lit_align.modules.step_totals import total_over_ranks
from lit_align.objectives.base import Objective
from lit_align.types import Outcome, PairBatch


class ObjectiveState:
    """Holds an objective's state and accumulates what the pairs of the current step observe of it.

    Args:
        objective: names the numbers of its state, their initial values, and how they advance.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.values = {
            name: torch.tensor(value, dtype=torch.float64) for name, value in objective.initial_state.items()
        }
        self._sums: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Discard what an interrupted step has left."""
        self._sums = {}

    def add(self, outcome: Outcome, batch: PairBatch) -> None:
        """Accumulate the observations of a micro-batch."""
        weight = batch.weight.double()
        for name, observed in outcome.observed.items():
            total = (torch.where(weight > 0, observed.detach().double(), 0.0) * weight).sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def advance(self, weight: float, strategy: Strategy) -> None:
        """Advance the state at the end of an optimizer step; a step without pairs leaves it as it is."""
        observed = {name: total_over_ranks(total, strategy) / (weight or 1.0) for name, total in self._sums.items()}
        self._sums = {}
        if self.values and weight:
            state = self.objective.advance_state(self.values, {name: mean.cpu() for name, mean in observed.items()})
            self.values = {name: state[name].detach().to("cpu", torch.float64) for name in self.values}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Load the state of a checkpoint, unless it is that of another objective."""
        if values.keys() == self.values.keys():
            self.values = {name: value.to("cpu", torch.float64) for name, value in values.items()}
