from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import (
    SFT,
    Mean,
    Objective,
    SelfRefine,
    SumOf,
    Term,
    WeightedSum,
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
from lit_align.objectives.base import Needs
from lit_align.objectives.examples import worked_pair


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
