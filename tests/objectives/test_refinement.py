from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lit_align.objectives import (
    LengthGap,
    Logistic,
    Mean,
    NoRefinement,
    PreferenceObjective,
    Refinement,
    SelfRefine,
    TargetMargin,
    sr_dpo,
)
from lit_align.objectives.examples import worked_pair

PLAIN = PreferenceObjective(Logistic())


@pytest.mark.parametrize(
    ("refinement", "expected"),
    [
        (NoRefinement(), 0.0),
        (TargetMargin(0.5), 0.5),
        (LengthGap(0.1), 3.0),  # 0.1 · (40 - 10)
        (SelfRefine(0.5), 1.5),  # 0.5 · 3
    ],
    ids=repr,
)
def test_golden(refinement: Refinement, expected: float) -> None:
    assert refinement(worked_pair(), PLAIN.margin).item() == pytest.approx(expected, rel=1e-6)


def test_self_refinement_uses_the_parts_of_the_objective_it_serves() -> None:
    averaged = replace(sr_dpo(strength=0.5), averaging=Mean())
    assert averaged(worked_pair()).offset.item() == pytest.approx(0.5 * 0.3, rel=1e-6)


def test_a_missing_quality_prompt_is_named() -> None:
    with pytest.raises(ValueError, match="quality prompt"):
        SelfRefine(0.5)(replace(worked_pair(), prompted=None), PLAIN.margin)


def test_a_longer_chosen_response_has_less_to_win() -> None:
    offset = LengthGap(0.1)(worked_pair(), PLAIN.margin)
    pair = worked_pair()
    swapped = replace(pair, policy=pair.policy.flip(1), mask=pair.mask.flip(1))
    assert LengthGap(0.1)(swapped, PLAIN.margin).item() == -offset.item() < 0


def test_the_offset_has_the_dtype_of_the_log_probabilities() -> None:
    pair = worked_pair()
    double = replace(pair, policy=pair.policy.double())
    for refinement in (NoRefinement(), TargetMargin(0.1), LengthGap(0.1)):
        assert refinement(double, PLAIN.margin).dtype == torch.float64


@pytest.mark.parametrize(
    ("leaf", "key"), [(TargetMargin, "target"), (LengthGap, "strength"), (SelfRefine, "strength")]
)
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_range(leaf: type, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{leaf.__name__}.{key}"):
        leaf(value)
