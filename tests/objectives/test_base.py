from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lit_align.objectives import Objective
from lit_align.objectives.base import check_field
from lit_align.objectives.examples import worked_pair
from lit_align.types import Outcome


class Constant(Objective):
    """A minimal objective."""

    def __call__(self, logps):
        return Outcome(loss=torch.ones(logps.policy.shape[0]), rewards=torch.zeros(logps.policy.shape[:2]))


def test_the_common_case_is_the_default() -> None:
    objective = Constant()
    assert (objective.needs.reference, objective.needs.prompted, objective.needs.rejected) == (True, False, True)
    assert objective(worked_pair()).loss.tolist() == [1.0]


def test_an_interface_cannot_be_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Objective()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("value", "interval"),
    [(0, "[0, 1]"), (1, "[0, 1]"), (0.5, "(0, 1)"), (1e300, "(0, inf)"), (-3, "(-inf, inf)"), (0.4999, "[0, 0.5)")],
)
def test_accepts_what_is_inside(value: float, interval: str) -> None:
    check_field(SimpleNamespace(key=value), "key", interval)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (-1e-9, "[0, 1]"),
        (1 + 1e-9, "[0, 1]"),
        (0, "(0, 1)"),
        (1, "(0, 1)"),
        (0.5, "[0, 0.5)"),
        (float("inf"), "(0, inf)"),
        (float("inf"), "[0, inf]"),
        (float("nan"), "(-inf, inf)"),
    ],
)
def test_refuses_what_is_outside_or_not_finite(value: float, interval: str) -> None:
    with pytest.raises(ValueError, match="SimpleNamespace.key is .*; expected a finite number in") as error:
        check_field(SimpleNamespace(key=value), "key", interval)
    assert interval in str(error.value)
