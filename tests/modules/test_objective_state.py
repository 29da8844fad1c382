"""Objective state advances by the weighted mean over a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lit_align.modules.objective_state import ObjectiveState
from lit_align.objectives import Objective, dpo
from lit_align.types import Outcome, PairLogProbs
from tests.metrics.examples import batch_of, logps_of


@dataclass(frozen=True)
class Halving(Objective):
    """Half the previous value and half the new one."""

    @property
    def initial_state(self) -> Mapping[str, float]:
        return {"shift": 8.0}

    def advance_state(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"shift": 0.5 * running["shift"] + 0.5 * observed["shift"]}

    def __call__(self, logps: PairLogProbs) -> Outcome:
        raise NotImplementedError


def seen(*values: float) -> Outcome:
    found = torch.tensor(values)
    return Outcome(found, found.unsqueeze(-1), observed={"shift": found})


def test_two_micro_batches_are_one_step(tmp_path: Path) -> None:
    """Weights 1, 2 and 1: the mean of 4, 1 and 10 is 4; (8 + 4) / 2 = 6. A copy of weight 0 has no effect."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    running = ObjectiveState(Halving())
    pair = [[-1.0], [-1.0]]
    running.add(seen(4.0, 1.0), batch_of(logps_of([pair] * 2), [1.0, 2.0]))
    running.add(seen(10.0, float("nan")), batch_of(logps_of([pair] * 2), [1.0, 0.0]))
    running.advance(4.0, trainer.strategy)
    assert running.values["shift"].item() == 6.0
    assert running.values["shift"].dtype == torch.float64
    running.add(seen(0.0), batch_of(logps_of([pair])))
    running.advance(1.0, trainer.strategy)
    assert running.values["shift"].item() == 3.0


@pytest.mark.parametrize(("saved", "expected"), [({"shift": 2.0}, 2.0), ({"other": 2.0}, 8.0), ({}, 8.0)])
def test_the_numbers_of_another_objective_are_not_taken_over(saved: dict[str, float], expected: float) -> None:
    running = ObjectiveState(Halving())
    running.load({name: torch.tensor(value) for name, value in saved.items()})
    assert running.values["shift"].item() == expected


def test_most_objectives_carry_nothing(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    running = ObjectiveState(dpo())
    running.advance(1.0, trainer.strategy)
    assert running.values == {}
