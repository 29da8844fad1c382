from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from lit_align.objectives import (
    LengthGap,
    Logistic,
    LostLikelihood,
    Mean,
    NoRefinement,
    PreferenceObjective,
    Refinement,
    SelfRefine,
    SumOf,
    TargetMargin,
    dpo,
    dpo_positive,
    sr_dpo,
)
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs

PLAIN = PreferenceObjective(Logistic())


@pytest.mark.parametrize(
    ("refinement", "expected"),
    [
        (NoRefinement(), 0.0),
        (TargetMargin(0.5), 0.5),
        (LengthGap(0.1), 3.0),  # 0.1 · (40 - 10)
        (SelfRefine(0.5), 1.5),  # 0.5 · 3
        (LostLikelihood(50.0), 0.0),  # the chosen log-ratio is 5
        (SumOf(()), 0.0),
        (SumOf((TargetMargin(0.5), SelfRefine(0.5), LengthGap(0.1))), 5.0),
    ],
    ids=repr,
)
def test_golden(refinement: Refinement, expected: float) -> None:
    assert refinement(worked_pair(), PLAIN.log_ratio).item() == pytest.approx(expected, rel=1e-6)


def test_self_refinement_uses_the_parts_of_the_objective_it_serves() -> None:
    averaged = replace(sr_dpo(strength=0.5), averaging=Mean())
    assert averaged(worked_pair()).offset.item() == pytest.approx(0.5 * 0.3, rel=1e-6)


def test_a_missing_quality_prompt_is_named() -> None:
    with pytest.raises(ValueError, match="quality prompt"):
        SelfRefine(0.5)(replace(worked_pair(), prompted=None), PLAIN.log_ratio)


def test_a_longer_chosen_response_has_less_to_win() -> None:
    offset = LengthGap(0.1)(worked_pair(), PLAIN.log_ratio)
    pair = worked_pair()
    swapped = replace(pair, policy=pair.policy.flip(1), mask=pair.mask.flip(1))
    assert LengthGap(0.1)(swapped, PLAIN.log_ratio).item() == -offset.item() < 0


def fallen(by: float = 6.0) -> PairLogProbs:
    """The worked pair with that many nats of reference more on the chosen side."""
    pair = worked_pair()
    assert pair.reference is not None
    more = torch.tensor([[[by / 10], [0.0]]]) * pair.mask
    return replace(pair, reference=pair.reference + more)


def test_what_the_chosen_response_lost_is_asked_for() -> None:
    outcome = dpo_positive(beta=0.1, strength=2.0)(fallen())
    assert outcome.margin is not None
    assert outcome.offset is not None
    assert outcome.margin.item() == pytest.approx(1.0, abs=1e-4)  # (5 - 6) + 2
    assert outcome.offset.item() == pytest.approx(2.0, abs=1e-4)


def slopes(objective: PreferenceObjective, logps: PairLogProbs) -> tuple[float, float]:
    """d loss / d log-prob of a chosen and of a rejected token."""
    policy = logps.policy.clone().requires_grad_()
    objective(replace(logps, policy=policy)).loss.backward()
    assert policy.grad is not None
    chosen, rejected = policy.grad[0, :, 0].tolist()
    return chosen, rejected


def test_what_was_lost_is_won_back_with_the_gradient_of_the_penalty() -> None:
    """d/d r_w of β (m - λ max(0, -r_w)) is β (1 + λ) below the reference, and β above it."""
    chosen, rejected = slopes(dpo_positive(beta=0.1, strength=2.0), fallen())
    assert rejected == pytest.approx(0.1 * 0.5249792, abs=1e-5)  # β σ(-0.1 · (1 - 2))
    assert chosen == pytest.approx(-3 * rejected)
    assert slopes(dpo_positive(beta=0.1, strength=2.0), worked_pair()) == slopes(dpo(0.1), worked_pair())


@dataclass(frozen=True)
class Forgetful(Refinement):
    """The margin appears a second time, and its gradient is not detached."""

    def __call__(self, logps, log_ratio):
        chosen, rejected = log_ratio(logps).unbind(-1)
        return chosen - rejected


def test_a_part_that_promises_no_gradient_passes_none() -> None:
    """Neither alone nor beside one that carries its own: with m - m the logit is 0, and d loss / d m is -β / 2."""
    for refinement in (Forgetful(), SumOf((Forgetful(), LostLikelihood(2.0)))):
        chosen, _ = slopes(replace(dpo(0.1), refinement=refinement), worked_pair())
        assert chosen == pytest.approx(-0.1 * 0.5)


def test_a_sum_needs_and_carries_what_its_parts_do() -> None:
    assert SumOf((TargetMargin(0.1), SelfRefine(0.1))).needs.prompted
    assert SumOf((TargetMargin(0.1), LostLikelihood(0.1))).carries_gradient
    assert not SumOf((TargetMargin(0.1), SelfRefine(0.1))).carries_gradient
    assert not SumOf((TargetMargin(0.1), LostLikelihood(0.1))).needs.prompted


def test_the_offset_has_the_dtype_of_the_log_probabilities() -> None:
    pair = worked_pair()
    double = replace(pair, policy=pair.policy.double())
    for refinement in (NoRefinement(), TargetMargin(0.1), LengthGap(0.1)):
        assert refinement(double, PLAIN.log_ratio).dtype == torch.float64


@pytest.mark.parametrize(
    ("leaf", "key"),
    [(TargetMargin, "target"), (LengthGap, "strength"), (SelfRefine, "strength"), (LostLikelihood, "strength")],
)
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_range(leaf: type, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{leaf.__name__}.{key}"):
        leaf(value)
