from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import (
    Averaging,
    LengthPower,
    Logistic,
    Mean,
    Objective,
    OnPolicy,
    PreferenceObjective,
    Reweighted,
    SharedLength,
    Term,
    WeightedSum,
    averaged_dpo,
    bco,
    direct_preference_matching,
    dpo,
    ipo,
    ipo_sum,
    kto,
    mpo,
    orpo,
    presets,
    simpo,
    sppo,
)
from lit_align.objectives.beta_scale import read_betas
from lit_align.types import PairLogProbs


def warned(objective: Objective, length: float = 200.0) -> list[bool]:
    return [reading.warning is not None for reading in read_betas(objective, length)]


@pytest.mark.parametrize("name", presets.__all__)
@pytest.mark.parametrize("length", [20.0, 200.0, 2000.0])
def test_no_published_setting_is_warned_of(name: str, length: float) -> None:
    assert not any(warned(getattr(presets, name)(), length))


@pytest.mark.parametrize(
    "objective",
    [
        averaged_dpo(0.1),
        simpo(0.05),
        replace(bco(0.1), averaging=Mean()),
        replace(dpo(0.1), averaging=LengthPower(0.9)),
    ],
    ids=repr,
)
def test_a_beta_of_sums_with_means_is_warned_of(objective: Objective) -> None:

    assert warned(objective) == [True]


@pytest.mark.parametrize(
    "objective", [dpo(5.0), bco(2.0), kto(2.0), replace(dpo(2.0), averaging=SharedLength(0.5))], ids=repr
)
def test_a_beta_of_means_with_sums_is_warned_of(objective: Objective) -> None:
    assert warned(objective) == [True]


@pytest.mark.parametrize("objective", [sppo(0.001), orpo()], ids=repr)
def test_a_beta_of_far_targets_or_of_odds_is_not_read(objective: Objective) -> None:
    assert read_betas(objective, 200.0) == ()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ipo(0.1), "beta is 0.1 and draws margins to 5 nats per token, .* beta: 5 asks for a tenth"),
        (ipo_sum(0.001), "beta is 0.001 and draws margins to 2.5 nats per token, .* beta: 0.025 asks for a tenth"),
        (
            ipo_sum(5.0),
            "beta is 5 and draws margins to 0.1 nats between .* 5 at the scale of means is beta: 0.025 here",
        ),
    ],
    ids=repr,
)
def test_a_target_that_is_too_far_or_too_near_is_warned_of(objective: Objective, message: str) -> None:
    (reading,) = read_betas(objective, 200.0)
    assert reading.warning is not None
    assert re.search(message, reading.warning)


@pytest.mark.parametrize("objective", [ipo(0.5), ipo(60.0), ipo_sum(0.01), ipo_sum(1.0)], ids=repr)
def test_other_targets_are_not_warned_of(objective: Objective) -> None:
    assert warned(objective, 30.0) == warned(objective, 200.0) == [False]


def test_equal_lengths_make_a_target_of_means_one_of_sums() -> None:
    """At length L, (m̄ - 1 / (2 β))² is (m - L / (2 β))² / L²: β of sums is β / L."""
    (of_means,), (of_sums,) = read_betas(ipo(5.0), 50.0), read_betas(ipo_sum(0.1), 50.0)
    assert of_means.at_sum_scale == pytest.approx(of_sums.at_sum_scale)


def test_the_matched_value_pulls_as_hard_at_equal_lengths() -> None:
    """What the message proposes, 0.1 · 50 = 5, has the gradient of β = 0.1 on sums where models are equal."""
    (reading,) = read_betas(averaged_dpo(0.1), 50.0)
    assert reading.at_sum_scale == pytest.approx(0.002)
    assert reading.warning is not None
    assert "beta: 5 here" in reading.warning
    logps = torch.full((1, 2, 50), -1.0, requires_grad=True)
    record = PairLogProbs(policy=logps, reference=logps.detach(), mask=torch.ones(1, 2, 50, dtype=torch.bool))
    slopes = [torch.autograd.grad(each(record).loss.sum(), logps)[0] for each in (averaged_dpo(5.0), dpo(0.1))]
    torch.testing.assert_close(*slopes)


def test_the_reverse_is_matched_too() -> None:
    (reading,) = read_betas(dpo(5.0), 50.0)
    assert reading.warning is not None
    assert "beta: 0.1 here" in reading.warning


def test_short_responses_make_no_difference_between_sums_and_means() -> None:
    assert warned(averaged_dpo(0.1), 3.0) == [False]
    assert warned(averaged_dpo(0.1), 21.0) == [True]
    assert warned(averaged_dpo(5.0), 3.0) == [False]


def test_preference_matching_is_exact_at_one() -> None:
    assert warned(direct_preference_matching(1.0)) == [False]
    assert warned(direct_preference_matching(1.5)) == [True]


def test_every_term_is_read_under_its_name() -> None:
    inner = WeightedSum((Term("a", averaged_dpo(0.1)), Term("b", ipo())))
    objective = Reweighted(WeightedSum((Term("outer", inner), Term("mixed", mpo(0.2)))), OnPolicy())
    readings = read_betas(objective, 100.0)
    assert [reading.name for reading in readings] == ["outer/a", "outer/b", "mixed/preference", "mixed/quality"]
    assert [reading.warning is not None for reading in readings] == [True, False, False, False]
    assert readings[0].warning is not None
    assert readings[0].warning.startswith("beta of the term outer/a is 0.1")


@dataclass(frozen=True)
class Middle(Averaging):
    """A user's averaging that declares nothing about lengths."""

    def __call__(self, values, mask, pair_seed=None):
        return torch.where(mask, values, 0.0).amax(-1)


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert read_betas(PreferenceObjective(Logistic(0.1), averaging=Middle()), 100.0) == ()


@pytest.mark.parametrize("length", [0.0, -1.0])
def test_a_length_is_a_length(length: float) -> None:
    with pytest.raises(ValueError, match="mean_length"):
        read_betas(dpo(), length)
