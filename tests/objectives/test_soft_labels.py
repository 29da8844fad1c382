from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lit_align.objectives import (
    DynamicBeta,
    LengthGap,
    Logistic,
    LostLikelihood,
    Objective,
    OddsRatio,
    PreferenceObjective,
    Sum,
    averaged_dpo,
    bco,
    cdpo,
    dpo,
    odpo,
)
from lit_align.objectives.base import MARGIN, PROBABILITY
from lit_align.objectives.examples import worked_pair
from lit_align.objectives.soft_labels import swapped
from lit_align.types import PairLogProbs

from ..laws.cases import assert_same, objectives, random_pairs, with_gradient

close = torch.testing.assert_close
MARGINS = torch.tensor([0.0, 0.5, 2.0, 0.1, 0.0, 1.0])
CERTAIN = torch.tensor([1.0, 0.8, 0.5, 0.6, 0.0, 0.95])


def sure(logps: PairLogProbs, probability: torch.Tensor | float) -> PairLogProbs:
    return replace(logps, preference_probability=torch.as_tensor(probability).expand(6).to(torch.float32))


def a_probable_order_is_a_mixture(objective: Objective) -> None:
    logps = random_pairs()
    kept, exchanged = objective(sure(logps, 1.0)).loss, objective(sure(logps, 0.0)).loss
    assert_same(kept, objective(logps).loss)
    close(objective(sure(logps, CERTAIN)).loss, CERTAIN * kept + (1 - CERTAIN) * exchanged)
    if not isinstance(objective, DynamicBeta):  # its β follows the margins of the stated order
        close(exchanged, objective(swapped(logps)).loss)


def a_stated_margin_is_an_offset(objective: Objective) -> None:
    plain, asked = (objective(logps) for logps in (random_pairs(), replace(random_pairs(), margin=MARGINS)))
    beta = objective.contrast.beta  # type: ignore[attr-defined]
    before = torch.zeros(6) if plain.offset is None else plain.offset
    close(asked.offset, before + MARGINS / beta)
    close(asked.loss, objective.contrast(plain.margin - asked.offset))  # type: ignore[attr-defined]
    close(asked.margin, plain.margin)


def honouring(column: str) -> list[Objective]:
    return [objective for objective in objectives() if column in objective.needs.columns]


WITH_MARGIN = [objective for objective in honouring(MARGIN) if hasattr(objective, "contrast")]


@pytest.mark.parametrize("objective", honouring(PROBABILITY), ids=repr)
def test_a_probable_order_is_a_mixture(objective: Objective) -> None:
    a_probable_order_is_a_mixture(objective)


@pytest.mark.parametrize("objective", WITH_MARGIN, ids=repr)
def test_a_stated_margin_is_an_offset(objective: Objective) -> None:
    a_stated_margin_is_an_offset(objective)


@pytest.mark.parametrize("objective", objectives(), ids=repr)
def test_a_column_that_is_not_honoured_changes_nothing(objective: Objective) -> None:
    told = replace(random_pairs(), margin=MARGINS, preference_probability=CERTAIN)
    unheard = {name: None for name in (MARGIN, PROBABILITY) if name not in objective.needs.columns}
    assert_same(objective(told).loss, objective(replace(told, **unheard)).loss)
    for name in objective.needs.columns:
        assert not torch.equal(objective(told).loss, objective(replace(told, **{name: None})).loss)


class Deaf(PreferenceObjective):
    """An objective that declares columns and does not use them."""

    def __call__(self, logps):
        return super().__call__(replace(logps, margin=None, preference_probability=None))


@pytest.mark.parametrize("law", [a_probable_order_is_a_mixture, a_stated_margin_is_an_offset])
def test_law_can_fail(law: Callable[[Objective], None]) -> None:
    with pytest.raises(AssertionError):
        law(Deaf(Logistic()))


def test_a_probability_is_label_smoothing_from_row_to_row() -> None:
    for share in (0.0, 0.1, 0.4):
        close(dpo()(sure(random_pairs(), 1 - share)).loss, cdpo(label_smoothing=share)(random_pairs()).loss)


def test_a_margin_and_a_probability_at_once() -> None:
    """β m - margin = 0.7 - 0.5, as it is with 0.75 and exchanged with 0.25: -0.75 log σ(0.2) - 0.25 log σ(-0.2)."""
    told = replace(worked_pair(), margin=torch.tensor([0.5]), preference_probability=torch.tensor([0.75]))
    outcome = odpo(0.1)(told)
    assert outcome.loss.item() == pytest.approx(0.5981389 + 0.25 * 0.2, abs=1e-6)
    assert odpo(0.1).slope(told, outcome).item() == pytest.approx(
        0.1 * (0.4501660 - 0.25), abs=1e-6
    )  # β (σ(-0.2) - 0.25)
    assert outcome.offset.item() == pytest.approx(5.0)


def test_a_refinement_of_one_side_looks_at_the_other_side_of_an_exchanged_pair() -> None:
    """r is 5 and -2, so only the pair the other way round has lost likelihood: margin -7 - 3 · 2 of its own."""
    objective = PreferenceObjective(Logistic(0.1), refinement=LostLikelihood(3.0))
    found = objective(replace(worked_pair(), preference_probability=torch.tensor([0.0]))).loss
    close(found, -torch.nn.functional.logsigmoid(torch.tensor([0.1 * (-7.0 - 6.0)])))


def test_a_length_gap_turns_its_sign_with_the_pair() -> None:
    objective = PreferenceObjective(Logistic(0.1), refinement=LengthGap(0.1))
    found = objective(replace(worked_pair(), preference_probability=torch.tensor([0.0]))).loss
    close(found, -torch.nn.functional.logsigmoid(torch.tensor([0.1 * (-7.0 + 3.0)])))


def test_a_probable_classification_takes_each_response_for_both() -> None:
    """p = 0.75: 0.75 (0.4740770 + 0.5981389) + 0.25 (0.9740770 + 0.7981389)."""
    found = bco(0.1)(replace(worked_pair(), preference_probability=torch.tensor([0.75]))).loss
    assert found.item() == pytest.approx(0.75 * 1.0722159 + 0.25 * 1.7722159, abs=1e-6)


def test_columns_under_inference_mode() -> None:
    with torch.inference_mode():
        told = replace(worked_pair(), margin=torch.tensor([0.5]), preference_probability=torch.tensor([0.75]))
        assert odpo(0.1).slope(told, odpo(0.1)(told)) is not None


def test_columns_in_another_precision_leave_the_loss_in_its_own() -> None:
    logps = random_pairs()
    told = replace(logps, margin=MARGINS.double(), preference_probability=CERTAIN.double())
    assert dpo()(told).loss.dtype == OddsRatio()(told).loss.dtype == bco()(told).loss.dtype == torch.float32
    assert dpo()(with_gradient(told)).loss.requires_grad


def test_swapping_twice_is_nothing() -> None:
    logps = replace(random_pairs(), margin=MARGINS)
    close(averaged_dpo()(swapped(swapped(logps))).loss, averaged_dpo()(logps).loss)
    close(swapped(logps).margin, -MARGINS)


@pytest.mark.parametrize(("requires", "missing"), [(("margins",), "margins"), (("margin", "weight"), "weight")])
def test_an_unknown_column_cannot_be_required(requires: tuple[str, ...], missing: str) -> None:
    with pytest.raises(ValueError, match=f"PreferenceObjective.requires names {missing}; expected margin or pref"):
        PreferenceObjective(Logistic(), averaging=Sum(), requires=requires)
