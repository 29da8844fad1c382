from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import SFT, Objective, OnPolicy, Reweighted, Weighting, dpo, mpo, papers, papers_of, wpo
from lit_align.objectives.base import NO_NEEDS

from ..laws.cases import gradient, objectives, random_pairs, with_gradient

close = torch.testing.assert_close
FORWARDED = ("initial_state", "scales", "term_names")


@dataclass(frozen=True)
class Chosen(Weighting):
    """A weight of 1 to 6, by the pair's place among those of the test."""

    needs = NO_NEEDS

    def __call__(self, logps):
        return torch.arange(1.0, len(logps.policy) + 1)


def test_everything_that_an_objective_says_is_asked_for_here() -> None:
    said = {name for name, value in vars(Objective).items() if isinstance(value, property)}
    assert said == {*FORWARDED, "needs"}


@pytest.mark.parametrize("objective", objectives(), ids=repr)
def test_the_objective_answers_for_itself(objective: Objective) -> None:
    wrapped = Reweighted(objective, Chosen())
    for name in FORWARDED:
        assert getattr(wrapped, name) == getattr(objective, name)
    assert wrapped.needs == objective.needs
    assert Reweighted(objective, OnPolicy()).needs == replace(objective.needs, collision=True, rejected=True)
    state = {name: torch.tensor(1.0) for name in objective.initial_state}
    assert wrapped.advance_state(state, state) == objective.advance_state(state, state)


@pytest.mark.parametrize("objective", objectives(), ids=repr)
def test_loss_slope_terms_and_gradient_are_multiplied_and_nothing_else(objective: Objective) -> None:
    plain, weighted = with_gradient(random_pairs()), with_gradient(random_pairs())
    expected, outcome = objective(plain), Reweighted(objective, Chosen())(weighted)
    weight = torch.arange(1.0, 7.0)
    close(outcome.loss, weight * expected.loss)
    if not objective.needs.batch_level:
        close(gradient(outcome.loss, weighted.policy), weight[:, None, None] * gradient(expected.loss, plain.policy))
    slope, plain_slope = Reweighted(objective, Chosen()).slope(weighted, outcome), objective.slope(plain, expected)
    assert (slope is None) is (plain_slope is None)
    if plain_slope is not None:
        close(slope, weight * plain_slope)
    close(dict(outcome.terms), {name: weight * loss for name, loss in expected.terms.items()})
    for name in ("rewards", "margin", "offset", "prompted_margin"):
        assert getattr(outcome, name) is None or torch.equal(getattr(outcome, name), getattr(expected, name))
    assert outcome.observed.keys() == expected.observed.keys()


def test_a_sum_is_weighted_as_a_whole() -> None:
    outcome = Reweighted(mpo(), Chosen())(random_pairs())
    close(
        outcome.loss, 0.8 * outcome.terms["preference"] + 0.2 * outcome.terms["quality"] + outcome.terms["generation"]
    )


def test_the_weight_of_wpo_passes_no_gradient() -> None:
    logps = with_gradient(random_pairs())
    found = gradient(wpo(0.1)(logps).loss, logps.policy)
    plain = with_gradient(random_pairs())
    close(found, OnPolicy()(plain)[:, None, None] * gradient(dpo(0.1)(plain).loss, plain.policy))


def test_both_sides_are_there_if_the_weight_looks_at_both() -> None:
    """Else training, which leaves out what is not needed, would weigh other than validation does."""
    assert Reweighted(SFT(), OnPolicy()).needs.rejected
    assert not Reweighted(SFT(), Chosen()).needs.rejected
    assert Reweighted(dpo(), Chosen()).needs.rejected


def test_papers_of_both() -> None:
    assert papers_of(wpo()) == (papers.DPO, papers.WPO)
