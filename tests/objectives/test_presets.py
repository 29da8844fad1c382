from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align import objectives
from lit_align.objectives import (
    PreferenceObjective,
    SelfRefine,
    Square,
    averaged_dpo,
    averaged_ipo,
    cdpo,
    direct_conditional_preference_matching,
    direct_preference_matching,
    dpo,
    ipo,
    ipo_sum,
    ld_dpo,
    presets,
    r_dpo,
    simpo,
    slic,
    sr_dpo,
    sr_ipo,
)
from lit_align.objectives.examples import worked_pair
from lit_align.types import PairLogProbs

# The worked pair: Σlp -20, Σref -25 over 10 tokens; Σlp -60, Σref -58 over 40; prompted margin 3.
# slope is what one chosen and one rejected token get.
GOLDEN: list[tuple[PreferenceObjective, float, tuple[float, float]]] = [
    (dpo(0.1), 0.4031860, (-0.0331812, 0.0331812)),  # -log σ(.7), .1 σ(-.7)
    (cdpo(0.1, 0.1), 0.4731860, (-0.0231812, 0.0231812)),  # .1 (σ(-.7) - .1)
    (averaged_dpo(2.0), 0.2873353, (-0.0499480, 0.0124870)),  # -log σ(1.1), 2 σ(-1.1) / 10 and / 40
    (ipo(0.5), 0.2025, (-0.09, 0.0225)),  # 2 (.55 - 1) / 10 and / 40
    (averaged_ipo(0.5), 0.2025, (-0.09, 0.0225)),
    (ipo_sum(0.1), 4.0, (4.0, -4.0)),  # (7 - 5)²: beyond its target, the margin is drawn back
    (slic(0.1), 0.3, (-0.1, 0.1)),
    (simpo(2.0, 1.0), 2.1269280, (-0.1761594, 0.0440399)),  # -log σ(-2), 2 σ(2) / 10 and / 40
    (ld_dpo(0.1, 0.5), 0.4287007, (-0.0348645, 0.0348645)),  # -log σ(.625); the first 10 tokens of both sides
    (r_dpo(0.1, 0.01), 0.5130153, (-0.0401312, 0.0401312)),  # -log σ(.7 - .3)
    (sr_dpo(0.1, 0.5), 0.4554925, (-0.0365864, 0.0365864)),  # -log σ(.55), .1 σ(-.55)
    (sr_ipo(0.1, 0.5), 3.4225, (3.7, -3.7)),  # (7 - .15 - 5)²
    (direct_preference_matching(0.01), 0.5130153, (-0.0040131, 0.0040131)),  # -log σ(.01 · 40)
    (direct_conditional_preference_matching(0.01, 0.1), 0.4200553, (-0.0034299, 0.0034299)),  # -log σ(.01 · 65)
]


@pytest.mark.parametrize(("objective", "loss", "slope"), GOLDEN, ids=[repr(objective) for objective, _, _ in GOLDEN])
def test_golden(objective: PreferenceObjective, loss: float, slope: tuple[float, float]) -> None:
    policy = worked_pair().policy.requires_grad_()
    outcome = objective(replace(worked_pair(), policy=policy))
    assert outcome.loss.item() == pytest.approx(loss, abs=2e-5 if loss > 1 else 1e-6)
    outcome.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0, :, 0].tolist() == pytest.approx(slope, abs=1e-5 if loss > 1 else 1e-6)


def test_the_tokens_beyond_the_shared_length_get_their_share() -> None:
    policy = worked_pair().policy.requires_grad_()
    ld_dpo(0.1, 0.5)(replace(worked_pair(), policy=policy)).loss.backward()
    assert policy.grad is not None
    assert policy.grad[0, 1, 20].item() == pytest.approx(policy.grad[0, 1, 0].item() / 2)


def test_self_refinement_raises_the_weight_of_a_pair() -> None:
    """σ(-.55) = .3658644 instead of σ(-.7) = .3318122, in units of β per token."""
    policy = worked_pair().policy.requires_grad_()
    sr_dpo(0.1, 0.5)(replace(worked_pair(), policy=policy)).loss.backward()
    assert policy.grad is not None
    assert -policy.grad[0, 0, 0].item() / 0.1 == pytest.approx(0.3658644, abs=1e-6)


def test_self_refined_ipo_as_derived_instead_of_as_printed() -> None:
    derived = PreferenceObjective(Square(0.1), refinement=SelfRefine(0.5))
    assert derived(worked_pair()).loss.item() == pytest.approx(0.25, abs=1e-5)  # (7 - 1.5 - 5)²


def test_an_empty_quality_prompt_is_the_naive_baseline() -> None:
    """Then m_p = m: the logit is 0.35 and d loss / d(β m) = -σ(-0.35), because nothing flows through m_p."""
    policy = worked_pair().policy.requires_grad_()
    naive = replace(worked_pair(), policy=policy, prompted=replace(worked_pair(), policy=policy))
    outcome = sr_dpo(0.1, 0.5)(naive)
    assert outcome.loss.item() == pytest.approx(0.5333822, abs=1e-6)
    outcome.loss.backward()
    assert policy.grad is not None
    assert policy.grad[0, 0, 0].item() / 0.1 == pytest.approx(-0.4133824, abs=1e-6)


# Every preset against its formula, written once more as loops over plain numbers; c is chosen, r rejected.

Tokens = list[tuple[float, float, float, float]]  # log-probs: policy, reference, policy prompted, reference prompted


def log_ratio(side: Tokens, prompted: bool = False) -> float:
    total = 0.0
    for token in side:
        total += token[2] - token[3] if prompted else token[0] - token[1]
    return total


def log_sigmoid(logit: float) -> float:
    return -math.log1p(math.exp(-logit)) if logit > 0 else logit - math.log1p(math.exp(logit))


def margin(c: Tokens, r: Tokens) -> float:
    return log_ratio(c) - log_ratio(r)


def mean_margin(c: Tokens, r: Tokens) -> float:
    return log_ratio(c) / len(c) - log_ratio(r) / len(r)


def prompted_margin(c: Tokens, r: Tokens) -> float:
    return log_ratio(c, True) - log_ratio(r, True)


def desensitized(side: Tokens, other: Tokens) -> float:
    shared = min(len(side), len(other))
    return log_ratio(side[:shared]) + 0.5 * log_ratio(side[shared:])


def likelihood(side: Tokens) -> float:
    return sum(token[0] for token in side)


def masked(side: Tokens) -> float:
    return sum(token[0] - (0.0 if token[1] > math.log(0.1) else token[1]) for token in side)


FORMULAS: dict[str, Callable[[Tokens, Tokens], float]] = {
    "dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r)),
    "cdpo": lambda c, r: -0.9 * log_sigmoid(0.1 * margin(c, r)) - 0.1 * log_sigmoid(-0.1 * margin(c, r)),
    "averaged_dpo": lambda c, r: -log_sigmoid(5.0 * mean_margin(c, r)),
    "ipo": lambda c, r: (mean_margin(c, r) - 5.0) ** 2,
    "averaged_ipo": lambda c, r: (mean_margin(c, r) - 0.1) ** 2,
    "ipo_sum": lambda c, r: (margin(c, r) - 5.0) ** 2,
    "slic": lambda c, r: max(0.0, 1 - 0.1 * margin(c, r)),
    "simpo": lambda c, r: -log_sigmoid(2.0 * (likelihood(c) / len(c) - likelihood(r) / len(r)) - 1.0),
    "ld_dpo": lambda c, r: -log_sigmoid(0.1 * (desensitized(c, r) - desensitized(r, c))),
    "r_dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r) + 0.01 * (len(c) - len(r))),
    "sr_dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r) - 0.5 * 0.1 * prompted_margin(c, r)),
    "sr_ipo": lambda c, r: (margin(c, r) - 0.5 * 0.1 * prompted_margin(c, r) - 5.0) ** 2,
    "direct_preference_matching": lambda c, r: -log_sigmoid(likelihood(c) - likelihood(r)),
    "direct_conditional_preference_matching": lambda c, r: -log_sigmoid(masked(c) - masked(r)),
}
PRESETS = {
    name: preset
    for name, preset in inspect.getmembers(presets, inspect.isfunction)
    if preset.__module__ == presets.__name__
}

log_prob = st.floats(-12, 0, allow_subnormal=False)
tokens = st.lists(st.tuples(log_prob, log_prob, log_prob, log_prob), min_size=1, max_size=8)


def as_batch(sides: tuple[Tokens, Tokens]) -> PairLogProbs:
    width = max(map(len, sides))
    filled = torch.tensor([[side + [(9.0,) * 4] * (width - len(side)) for side in sides]], dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor([[[len(side)] for side in sides]])
    policy, reference, policy_prompted, reference_prompted = filled.unbind(-1)
    prompted = PairLogProbs(policy=policy_prompted, reference=reference_prompted, mask=mask)
    return PairLogProbs(policy=policy, reference=reference, mask=mask, prompted=prompted)


def test_every_preset_has_a_formula_and_is_exported() -> None:
    assert set(FORMULAS) == set(PRESETS) == set(PRESETS) & set(objectives.__all__)


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=40, deadline=None)
@given(c=tokens, r=tokens)
def test_agrees_with_its_formula(name: str, c: Tokens, r: Tokens) -> None:
    found = PRESETS[name]()(as_batch((c, r))).loss.item()
    assert found == pytest.approx(FORMULAS[name](c, r), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_gradient(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    policy = -torch.rand(2, 2, 3, dtype=torch.float64, generator=draw)
    mask = torch.arange(3) < torch.tensor([[[3], [2]], [[1], [3]]])
    prompted = PairLogProbs(policy=policy - 0.2, reference=policy.flip(0), mask=mask)
    logps = PairLogProbs(policy=policy, reference=policy.flip(1) - 0.1, mask=mask, prompted=prompted)
    objective = PRESETS[name]()
    assert torch.autograd.gradcheck(lambda lp: objective(replace(logps, policy=lp)).loss, (policy.requires_grad_(),))


@pytest.mark.parametrize(("preset", "key"), [(simpo, "gamma"), (r_dpo, "alpha"), (sr_dpo, "strength")])
def test_a_wrong_beta_is_named_before_it_divides(preset: Callable[..., PreferenceObjective], key: str) -> None:
    with pytest.raises(ValueError, match="Logistic.beta"):
        preset(beta=0.0)
    with pytest.raises(ValueError, match="expected a finite number in"):
        preset(**{key: -1.0})
