from __future__ import annotations

import pytest
import torch

from lit_align.objectives import Objective
from lit_align.objectives.examples import worked_pair
from lit_align.types import Outcome


class Constant(Objective):
    """The least an objective can be."""

    def __call__(self, logps):
        return Outcome(loss=torch.ones(logps.policy.shape[0]), rewards=torch.zeros(logps.policy.shape[:2]))


def test_the_common_case_is_the_default() -> None:
    objective = Constant()
    assert (objective.needs.reference, objective.needs.prompted, objective.needs.rejected) == (True, False, True)
    assert objective(worked_pair()).loss.tolist() == [1.0]


def test_an_interface_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]
