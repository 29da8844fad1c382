from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field, replace

import pytest
import torch
from torch.nn import functional as F

from lit_align.objectives import (
    Averaging,
    Contrast,
    Entropy,
    Logistic,
    Mean,
    OddsRatio,
    PreferenceObjective,
    RankedMargins,
    RankedResponses,
    SelfRefine,
    Square,
    Sum,
    dpo,
    simpo,
    sr_dpo,
)
from lit_align.objectives.examples import worked_pair


@dataclass(frozen=True)
class Focal(Contrast):
    """``-σ(-β m)^κ log σ(β m)``: pairs already won fade out; a contrast as users write it in a file of their own."""

    beta: float = 0.1
    kappa: float = 2.0

    def __call__(self, margin):
        scaled = self.beta * margin
        return -(F.sigmoid(-scaled) ** self.kappa) * F.logsigmoid(scaled)


def test_a_users_contrast_joins_the_other_parts() -> None:
    objective = PreferenceObjective(Focal(beta=2.0), averaging=Mean(), refinement=SelfRefine(0.3))
    outcome = objective(worked_pair())
    logit = torch.tensor(2.0 * (0.55 - 0.3 * 0.3))
    torch.testing.assert_close(outcome.loss[0], -(F.sigmoid(-logit) ** 2) * F.logsigmoid(logit))
    torch.testing.assert_close(outcome.rewards, torch.tensor([[1.0, -0.1]]))


def test_the_outcome_of_the_worked_pair() -> None:
    outcome = sr_dpo(beta=0.1, strength=0.5)(worked_pair())
    assert outcome.margin.item() == pytest.approx(7.0, rel=1e-6)
    assert outcome.prompted_margin.item() == pytest.approx(3.0, rel=1e-6)
    assert outcome.offset.item() == pytest.approx(1.5, rel=1e-6)
    torch.testing.assert_close(outcome.rewards, torch.tensor([[0.5, -0.2]]))


def test_a_prompted_pair_that_is_not_asked_for_is_not_reported() -> None:
    assert dpo()(worked_pair()).prompted_margin is None


def test_needs_are_those_of_the_parts() -> None:
    assert (dpo().needs.reference, dpo().needs.prompted, dpo().needs.rejected) == (True, False, True)
    assert not simpo().needs.reference
    assert sr_dpo().needs.prompted


def test_the_contrast_is_the_only_part_without_a_default() -> None:
    with pytest.raises(TypeError, match="contrast"):
        PreferenceObjective()  # type: ignore[call-arg]
    assert PreferenceObjective(Logistic()) == dpo()


def test_an_objective_is_a_value() -> None:
    assert hash(replace(dpo(), regularizer=Entropy())) == hash(PreferenceObjective(Logistic(), regularizer=Entropy()))
    with pytest.raises(FrozenInstanceError):
        dpo().contrast = Square()  # type: ignore[misc]


@dataclass(frozen=True)
class Counting(Averaging):
    """Counts its calls."""

    calls: list

    def __call__(self, values, mask, pair_seed=None):
        self.calls.append(1)
        return Sum()(values, mask)


@pytest.mark.parametrize(("objective", "expected"), [(dpo(), 1), (sr_dpo(), 2)], ids=["plain", "self-refined"])
def test_each_margin_is_computed_once(objective: PreferenceObjective, expected: int) -> None:
    calls: list = []
    replace(objective, averaging=Counting(calls))(worked_pair())
    assert len(calls) == expected


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_slope_is_the_gradient_s_weight_in_every_mode(mode: type) -> None:
    """β σ(−β m) at β = 2, m = 0.55: the gradient of each of the 10 chosen tokens, 0.0499480, times 10."""
    objective = PreferenceObjective(Logistic(beta=2.0), averaging=Mean())
    with mode():
        slope = objective.slope(worked_pair(), objective(worked_pair()))
    assert slope.item() == pytest.approx(0.499480, abs=1e-6)


def test_the_slope_is_taken_behind_the_refinement() -> None:
    objective = sr_dpo(beta=0.1, strength=0.5)
    slope = objective.slope(worked_pair(), objective(worked_pair()))
    assert slope.item() == pytest.approx(0.1 * 0.3658644, abs=1e-7)


@dataclass(frozen=True)
class CountingContrast(Contrast):
    """The logistic contrast, which counts its calls."""

    calls: list = field(default_factory=list)
    beta: float = 0.1

    def __call__(self, margin):
        self.calls.append(len(margin))
        return Logistic(self.beta)(margin)


@pytest.mark.parametrize("joint", [PreferenceObjective, OddsRatio, RankedMargins, RankedResponses])
def test_the_contrast_is_evaluated_once_per_call(joint: type) -> None:
    contrast = CountingContrast()
    joint(contrast)(worked_pair())
    assert contrast.calls == [1]


def test_of_a_probable_pair_it_is_evaluated_once_per_order() -> None:
    contrast = CountingContrast()
    PreferenceObjective(contrast)(replace(worked_pair(), preference_probability=torch.tensor([0.75])))
    assert contrast.calls == [1, 1]
