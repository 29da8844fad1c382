from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import (
    SFT,
    Mean,
    Objective,
    OnPolicy,
    Reweighted,
    SelfRefine,
    SumOf,
    Term,
    WeightedSum,
    Weighting,
    bco,
    cdpo,
    cpo,
    dpo,
    kto,
    mpo,
    odpo,
    orpo,
    papers,
    papers_of,
    sampo,
    simpo,
    sr_dpo,
    wpo,
)
from lit_align.objectives.base import NO_NEEDS, Needs
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs

from ..laws.cases import assert_same, each_tensor, gradient, objectives, parts, random_pairs, some_pairs, with_gradient


def weighted(*objectives: Objective) -> WeightedSum:
    return WeightedSum(tuple(Term(f"term_{number}", objective) for number, objective in enumerate(objectives)))


def test_the_loss_is_the_sum_of_its_terms() -> None:
    outcome = mpo()(worked_pair())
    assert list(outcome.terms) == ["preference", "quality", "generation"]
    assert {name: loss.item() for name, loss in outcome.terms.items()} == pytest.approx(
        {"preference": 0.4031860, "quality": 1.0722159, "generation": 2.0}
    )
    assert outcome.loss.item() == pytest.approx(0.8 * 0.4031860 + 0.2 * 1.0722159 + 2.0)


def test_the_first_term_tells_what_else_there_is() -> None:
    first, outcome = sr_dpo()(worked_pair()), weighted(sr_dpo(), bco(0.3))(worked_pair())
    for name in ("rewards", "margin", "offset", "prompted_margin"):
        assert torch.equal(getattr(outcome, name), getattr(first, name))
    assert torch.equal(weighted(bco(0.3), sr_dpo())(worked_pair()).rewards, bco(0.3)(worked_pair()).rewards)


def test_a_term_of_no_weight_is_reported_and_moves_nothing() -> None:
    policy = worked_pair().policy.requires_grad_()
    outcome = WeightedSum((Term("on", dpo()), Term("off", SFT(), 0.0)))(replace(worked_pair(), policy=policy))
    outcome.loss.backward()
    assert policy.grad is not None
    alone = worked_pair().policy.requires_grad_()
    dpo()(replace(worked_pair(), policy=alone)).loss.backward()
    assert torch.equal(policy.grad, alone.grad)  # type: ignore[arg-type]
    assert outcome.terms["off"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("outer", [True, False])
def test_a_sum_may_stand_in_a_sum(outer: bool) -> None:
    inner = weighted(dpo(), SFT())
    objective = WeightedSum((Term("both", inner, 0.5), Term("each", bco(0.1)))) if outer else inner
    expected = 0.5 * 2.4031860 + 1.0722159 if outer else 2.4031860
    assert objective(worked_pair()).loss.item() == pytest.approx(expected)


@dataclass(frozen=True)
class Unpaired(Objective):
    """Takes rows of one side, and looks at their margins."""

    needs = Needs(reference=True, rejected=True, unpaired=True, columns=frozenset({"margin"}))

    def __call__(self, logps):
        return SFT()(logps)


def needs(objective: Objective) -> tuple[bool, bool, bool]:
    return objective.needs.reference, objective.needs.prompted, objective.needs.rejected


def test_needs_are_the_union() -> None:
    assert needs(weighted(SFT(), SFT())) == (False, False, False)
    assert needs(weighted(SFT(), simpo())) == (False, False, True)
    assert needs(weighted(simpo(), sr_dpo())) == (True, True, True)
    assert needs(orpo()) == needs(cpo()) == (False, False, True)
    assert needs(mpo()) == (True, False, True)
    assert weighted(Unpaired(), Unpaired()).needs.unpaired
    assert not weighted(Unpaired(), dpo()).needs.unpaired
    assert weighted(cdpo(), dpo()).needs.columns == {"margin", "preference_probability"}


def test_a_likelihood_would_take_labels_for_certain() -> None:
    """Beside it, margins still change the loss; a probability that the rejected response is better would not."""
    assert "preference_probability" in dpo().needs.columns
    assert weighted(Unpaired(), dpo()).needs.columns == orpo().needs.columns == mpo().needs.columns == {"margin"}


def test_likelihoods_alone_work_without_the_rejected_side() -> None:
    pair = worked_pair()
    chosen = replace(pair, policy=pair.policy[:, :1], mask=pair.mask[:, :1], reference=None, prompted=None)
    assert weighted(SFT(), SFT())(chosen).loss.item() == pytest.approx(4.0)


def test_papers_are_found_in_the_terms_and_in_the_parts_of_a_refinement() -> None:
    assert papers_of(orpo()) == (papers.ORPO, papers.DPO, papers.AVERAGING)
    assert papers_of(SumOf((SelfRefine(0.1),))) == (papers.SELF_REFINEMENT,)


@pytest.mark.parametrize("name", ["", "a b", "a/b"])
def test_a_name_is_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="Term.name"):
        Term(name, dpo())


@pytest.mark.parametrize("weight", [-1.0, float("inf")])
def test_range(weight: float) -> None:
    with pytest.raises(ValueError, match="Term.weight"):
        Term("one", dpo(), weight)


@pytest.mark.parametrize("terms", [(), (Term("same", dpo()), Term("same", SFT(Mean())))])
def test_names_are_distinct_and_there_is_one(terms: tuple[Term, ...]) -> None:
    with pytest.raises(ValueError, match="distinct names"):
        WeightedSum(terms)


def test_what_else_is_asked_for_is_the_union() -> None:
    names = ("mismatched", "collision", "pair_seed", "batch_level")
    plain, wide = weighted(dpo(), SFT()), weighted(dpo(), kto(), wpo(), sampo(), odpo())
    assert [getattr(plain.needs, name) for name in names] == [False] * 4
    assert [getattr(wide.needs, name) for name in names] == [True] * 4
    assert wide.needs.required_columns == {"margin"}
    assert not plain.needs.required_columns


def test_running_numbers_are_each_term_s_own() -> None:
    objective = weighted(dpo(), bco(0.1), replace(bco(0.1), averaging=Mean()))
    first = {"term_1/anchor": 0.0, "term_1/steps": 0.0, "term_2/anchor": 0.0, "term_2/steps": 0.0}
    assert objective.initial_state == first
    state = {name: torch.tensor(value, dtype=torch.float64) for name, value in first.items()}
    observed = objective(worked_pair()).observed
    assert {name: value.item() for name, value in observed.items()} == pytest.approx(
        {"term_1/anchor": 1.5, "term_2/anchor": 0.225}
    )  # (5 - 2) / 2, (0.5 - 0.05) / 2
    after = objective.advance_state(state, {name: value.double().mean() for name, value in observed.items()})
    assert {name: value.item() for name, value in after.items()} == pytest.approx(
        {"term_1/anchor": 1.5, "term_1/steps": 1.0, "term_2/anchor": 0.225, "term_2/steps": 1.0}
    )
    terms = objective(replace(worked_pair(), state=after)).terms
    alone = bco(0.1)(replace(worked_pair(), state={"anchor": torch.tensor(1.5)})).loss
    torch.testing.assert_close(terms["term_1"], alone)
    assert not torch.allclose(terms["term_2"], alone)


def test_running_numbers_of_a_sum_in_a_sum() -> None:
    objective = weighted(SFT(), mpo())
    assert set(objective.initial_state) == {"term_1/quality/anchor", "term_1/quality/steps"}
    state = {name: torch.zeros(()) for name in objective.initial_state}
    after = objective.advance_state(state, {"term_1/quality/anchor": torch.tensor(2.0)})
    assert after["term_1/quality/anchor"].item() == 2.0


close = torch.testing.assert_close
FORWARDED = ("initial_state", "prompted_length_power", "scales", "term_names")


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


def weights_are_a_number_of_each_pair(weighting: Weighting) -> None:
    logps = random_pairs()
    weight = weighting(logps)
    assert weight.shape == (6,)
    assert weight.dtype == logps.policy.dtype
    assert (weight >= 0).all()
    assert_same(weighting(some_pairs(logps, slice(2, 4))), weight[2:4])


def padding_never_matters(weighting: Weighting) -> None:
    logps = random_pairs()
    dirty = each_tensor(logps, lambda v: v if v.dtype == torch.bool else torch.where(logps.mask, v, float("nan")))
    assert_same(weighting(dirty), weighting(logps))


def no_gradient_passes(weighting: Weighting) -> None:
    assert not weighting(with_gradient(random_pairs())).requires_grad


def needs_are_stated(weighting: Weighting) -> None:
    bare = replace(random_pairs(), collision=None)
    if weighting.needs.collision:
        try:
            weighting(bare)
        except ValueError as error:
            assert "collision" in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs the collision probability, and runs without")
    else:
        assert_same(weighting(bare), weighting(random_pairs()))


@dataclass(frozen=True)
class Wrong(Weighting):
    """A weighting that is made from a function."""

    rule: Callable[[PairLogProbs], torch.Tensor]

    def __call__(self, logps):
        return self.rule(logps)


LAWS = {
    weights_are_a_number_of_each_pair: Wrong(lambda logps: logps.policy.sum((1, 2)).softmax(0)),
    padding_never_matters: Wrong(lambda logps: logps.policy.detach().sum((1, 2)).exp()),
    no_gradient_passes: Wrong(lambda logps: logps.policy.sum((1, 2)).exp()),
    needs_are_stated: Wrong(
        lambda logps: (logps.collision if logps.collision is not None else logps.policy).sum((1, 2))
    ),
}
"""Each law and an objective that violates it."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("weighting", parts(Weighting), ids=repr)
def test_law(weighting: Weighting, law: Callable[[Weighting], None]) -> None:
    law(weighting)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Weighting], None], wrong: Weighting) -> None:
    with pytest.raises(AssertionError):
        law(wrong)


def collided(value: float) -> PairLogProbs:
    return replace(worked_pair(), collision=worked_pair().mask * value)


@pytest.mark.parametrize(("collision", "expected"), [(-1.25, -1.0), (-1.75, 0.0), (-1.7, -0.1), (-3.0, 0.0)])
def test_the_two_sides_are_multiplied_and_the_product_is_cut_at_one(collision: float, expected: float) -> None:
    """-2 and -1.5 per token: at -1.7 the sides are e^-0.3 and e^0.2, and only their product is cut."""
    weight = OnPolicy()(collided(collision)).item()
    assert weight == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-5)


def test_a_uniform_policy_s_responses_weigh_one() -> None:
    """Over v words lp = -log v and Σ π² = 1 / v: whatever it writes is as likely as what it writes on average."""
    mask = random_pairs().mask
    uniform = torch.full(mask.shape, -2.0)
    logps = PairLogProbs(policy=uniform, reference=None, mask=mask, collision=uniform)
    assert OnPolicy()(logps).tolist() == [1.0] * 6


def test_an_absent_side_counts_as_one() -> None:
    logps = collided(-1.25)
    mask = logps.mask.clone()
    mask[:, 1] = False
    assert OnPolicy()(replace(logps, mask=mask)).item() == pytest.approx(torch.tensor(-0.75).exp().item(), rel=1e-5)
