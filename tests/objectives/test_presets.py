from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align import objectives
from lit_align.objectives import (
    Objective,
    PreferenceObjective,
    SelfRefine,
    Square,
    alpha_divergence_dpo,
    alpha_po,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    averaged_dpo,
    averaged_ipo,
    bco,
    bco_unshifted,
    beta_dpo,
    cdpo,
    confpo,
    cpo,
    cpo_simpo,
    direct_conditional_preference_matching,
    direct_preference_matching,
    discopop,
    dpo,
    dpo_positive,
    dpo_shift,
    exo,
    forward_kl_dpo,
    humanline_dpo,
    ipo,
    ipo_sum,
    jensen_shannon_dpo,
    kto,
    ld_dpo,
    mpo,
    nca,
    odpo,
    orpo,
    r_dpo,
    robust_dpo,
    rpo,
    rso,
    simper,
    simpo,
    slic,
    slic_hf,
    sppo,
    sr_dpo,
    sr_ipo,
    wpo,
)
from lit_align.objectives.examples import worked_pair
from lit_align.objectives.presets import PRESETS
from lit_align.types import PairLogProbs

# The worked pair: Σlp -20, Σref -25 over 10 tokens; Σlp -60, Σref -58 over 40; prompted margin 3. Where it is asked
# for: mismatched pairs are the pair itself, log Σ π² is -1.25 at every token, the running anchor is 1.5.
# slope is what one chosen and one rejected token get.
GOLDEN: list[tuple[Objective, float, tuple[float, float]]] = [
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
    (robust_dpo(0.1, 0.1), 0.3156860, (-0.0456812, 0.0456812)),  # .4031860 - .7 / 8, .1 (σ(-.7) + 1 / 8)
    (exo(0.1, 0.1), 0.1989718, (-0.0331954, 0.0331954)),  # .1 σ(.7) σ(-.7) (.7 - log 9)
    (discopop(0.1), 0.4965852, (-0.0496584, 0.0496584)),  # e^-.7, up to σ(-14)
    (dpo_shift(0.1, 0.75), 0.4200553, (-0.0342990, 0.0257242)),  # logit .1 (5 + .75 · 2)
    (beta_dpo(0.1), 0.0346188, (-0.0162646, 0.0162646)),  # β = .1 (1 + .6 (7 - .7)); .478 σ(-3.346)
    (confpo(2.0, 1.0), 2.1269280, (-0.1761594, 0.0440399)),  # SimPO's: the tokens of a response are alike
    (humanline_dpo(0.1, -0.04, 1.5), 0.4166367, (-0.0340740, 0.0)),  # logit .1 (5 + 1.6); rejected tokens are beyond
    (simper(), 1.0877949, (-0.0135335, 0.0055783)),  # 1 - e^-2 + e^-1.5; e^-2 / 10, e^-1.5 / 40
    (dpo_positive(0.1, 50.0), 0.4031860, (-0.0331812, 0.0331812)),  # r_w is 5
    (nca(0.1), 1.2601850, (-0.0066311, 0.0225083)),  # .1 (½ σ(.5) - σ(-.5)), .1 ½ σ(-.2)
    (bco_unshifted(0.1), 1.0722159, (-0.0377541, 0.0450166)),  # -.1 σ(-.5), .1 σ(-.2)
    (bco(0.1), 1.0667644, (-0.0413382, 0.0413382)),  # shifted by .15: -.1 σ(-.35), .1 σ(-.35)
    (kto(0.1, 1.5, 0.5), 0.8267648, (-0.0363746, 0.0121249)),  # z = 1.5: 2 σ(-.35); .1 σ'(.35) times the weights
    (aot(0.1), 0.4031860, (-0.0331812, 0.0331812)),  # DPO's: one pair has one rank
    (aot_unpaired(0.1), 0.4031860, (-0.0331812, 0.0331812)),
    (wpo(0.1), 0.1483238, (-0.0122067, 0.0122067)),  # DPO's times e^(-.75 - .25)
    (odpo(0.1), 0.4031860, (-0.0331812, 0.0331812)),  # DPO's where no margin is stated
    (rso(0.1), 0.3, (-0.1, 0.1)),
    (forward_kl_dpo(0.1), 0.3906616, (-0.0002179, 0.2389554)),  # logit .1 (e^2 - e^-5); .1 σ(-.7382318) times e^-r
    (jensen_shannon_dpo(0.1), 0.5927452, (-0.0002993, 0.0393886)),  # logit .2120213; .1 σ(-.2120213) times σ(-r)
    (alpha_divergence_dpo(0.1, 0.5), 0.4638800, (-0.0030467, 0.1008920)),  # logit .2 (e - e^-2.5); e^(-r / 2)
    (alpha_po(2.0, 1.0, 0.5), 3.4377905, (-0.5261856, 0.1024484)),  # logit -3.4051272; 2 σ(3.405) e^1 / 10, e^.75 / 40
    (cpo_simpo(2.0, 1.0, 0.5), 3.1269280, (-0.2261594, 0.0440399)),  # SimPO's and -.5 / 10
    (slic_hf(50.0, 0.1), 12.0, (-1.1, 1.0)),  # 50 - 40 + .1 · 20
    (sppo(0.1), 9.0, (0.0, 6.0)),  # at its target, and 2 (-2 + 5)
    (apo_zero(0.1), 0.8277067, (-0.0235004, 0.0247517)),  # .1 σ'(.5), .1 σ'(.2)
    (apo_down(0.1), 0.9542715, (0.0013291, 0.0221713)),  # .1 (σ'(.5) - σ'(.7)), .1 σ'(.7)
    (orpo(0.1), 2.1042058, (-0.1074859, 0.0020829)),  # -1 / 10 - .1 · .6472725 · 1.1565176 / 10; 1.2872170 / 40
    (cpo(0.1), 2.0181499, (-0.1017986, 0.0017986)),  # -log σ(4) + 2, .1 σ(-4)
    (rpo(0.1), 2.4031860, (-0.1331812, 0.0331812)),  # DPO's and -1 / 10
    (mpo(0.1), 2.5369920, (-0.1340958, 0.0355483)),  # .8 DPO + .2 BCO - 1 / 10
]


@pytest.mark.parametrize(("objective", "loss", "slope"), GOLDEN, ids=[repr(objective) for objective, _, _ in GOLDEN])
def test_golden(objective: Objective, loss: float, slope: tuple[float, float]) -> None:
    pair = worked_pair()
    policy = pair.policy.requires_grad_()
    state = {"anchor": torch.tensor(1.5), "steps": torch.tensor(1.0)}
    collision = pair.mask * -1.25
    mismatched = replace(pair, policy=pair.policy.detach())
    pair = replace(pair, collision=collision, mismatched=mismatched, pair_seed=torch.tensor([DRAW]))
    outcome = objective(replace(pair, state=state))
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
    assert sr_ipo(0.1, 0.5, derived=True) == derived


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


def clamped(side: Tokens) -> float:
    return sum(min(1.5, max(-1.5, token[0] - token[1])) for token in side)


def unsure(side: Tokens) -> float:
    mean = sum(math.exp(token[0]) for token in side) / len(side)
    low = [token[0] for token in side if math.exp(token[0]) < mean] or [token[0] for token in side]
    return sum(low) / len(low)


def fallen(side: Tokens) -> float:
    return max(0.0, -log_ratio(side))


def log_odds(side: Tokens) -> float:
    p = math.exp(likelihood(side) / len(side))
    return math.log(p / (1 - p))


def nll(side: Tokens) -> float:
    return -likelihood(side) / len(side)


def sigmoid(logit: float) -> float:
    return math.exp(log_sigmoid(logit))


def reverse_kl(logit: float, flips: float) -> float:
    p, q = sigmoid(logit), sigmoid(-logit)
    return p * math.log(p / (1 - flips)) + q * math.log(q / flips)


def modulated(logit: float) -> float:
    late = sigmoid(logit / 0.05)
    return -log_sigmoid(logit) * (1 - late) + math.exp(-logit) * late


def classified(c: Tokens, r: Tokens, beta: float = 0.1) -> float:
    return -log_sigmoid(beta * log_ratio(c)) - log_sigmoid(-beta * log_ratio(r))


def reference_point(c: Tokens, r: Tokens) -> float:
    """The batches of these tests have the prompted log-probabilities as their mismatched ones."""
    return max(0.0, (log_ratio(c, True) + log_ratio(r, True)) / 2)


def alignment(side: Tokens) -> float:
    """And those of the prompted reference as log Σ π²."""
    return sum(token[0] - token[3] for token in side) / len(side)


def steep(exponent: float) -> float:
    """An exponential that continues along its tangent beyond e^36."""
    return math.exp(min(exponent, 36.0)) + math.exp(36.0) * max(0.0, exponent - 36.0)


def scrambled(number: int) -> int:
    number = (number + 0x9E3779B97F4A7C15) % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def sampled(side: Tokens, other: Tokens) -> Tokens:
    """The tokens whose hashed positions, as signed numbers, are smallest; the pair seed of these tests is 7."""

    def key(position: int) -> int:
        number = scrambled((scrambled(DRAW) + position) % 2**64)
        return number - 2**64 if number >= 2**63 else number

    order = sorted(range(len(side)), key=lambda position: key(position + 1))
    return [side[position] for position in order[: min(len(side), len(other))]]


DRAW = 7


FORMULAS: dict[str, Callable[[Tokens, Tokens], float]] = {
    "dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r)),
    "cdpo": lambda c, r: -0.9 * log_sigmoid(0.1 * margin(c, r)) - 0.1 * log_sigmoid(-0.1 * margin(c, r)),
    "averaged_dpo": lambda c, r: -log_sigmoid(5.0 * mean_margin(c, r)),
    "ipo": lambda c, r: (mean_margin(c, r) - 0.1) ** 2,
    "averaged_ipo": lambda c, r: (mean_margin(c, r) - 0.1) ** 2,
    "ipo_sum": lambda c, r: (margin(c, r) - 5.0) ** 2,
    "slic": lambda c, r: max(0.0, 1 - 0.1 * margin(c, r)),
    "simpo": lambda c, r: -log_sigmoid(2.0 * (likelihood(c) / len(c) - likelihood(r) / len(r)) - 1.0),
    "ld_dpo": lambda c, r: -log_sigmoid(0.1 * (desensitized(c, r) - desensitized(r, c))),
    "r_dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r) + 0.01 * (len(c) - len(r))),
    "sr_dpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r) - 0.5 * 0.1 * prompted_margin(c, r)),
    "sr_ipo": lambda c, r: (margin(c, r) - 0.5 * 0.1 * prompted_margin(c, r) - 5.0) ** 2,
    "robust_dpo": lambda c, r: (
        (-0.9 * log_sigmoid(0.01 * margin(c, r)) + 0.1 * log_sigmoid(-0.01 * margin(c, r))) / 0.8
    ),
    "exo": lambda c, r: reverse_kl(0.1 * margin(c, r), 1e-3),
    "discopop": lambda c, r: modulated(0.05 * margin(c, r)),
    "dpo_shift": lambda c, r: -log_sigmoid(0.1 * (log_ratio(c) - 0.75 * log_ratio(r))),
    "simper": lambda c, r: 1 - math.exp(-nll(c)) + math.exp(-nll(r)),
    "beta_dpo": lambda c, r: -log_sigmoid(max(1e-3, 0.1 + 0.06 * 0.9 * margin(c, r)) * margin(c, r)),
    "confpo": lambda c, r: -log_sigmoid(1.5 * (unsure(c) - unsure(r)) - 1.6),
    "humanline_dpo": lambda c, r: -log_sigmoid(0.1 * (clamped(c) - clamped(r))),
    "dpo_positive": lambda c, r: -log_sigmoid(0.3 * (margin(c, r) - 50.0 * fallen(c))),
    "nca": lambda c, r: (
        -log_sigmoid(0.01 * log_ratio(c))
        - 0.5 * log_sigmoid(-0.01 * log_ratio(c))
        - 0.5 * log_sigmoid(-0.01 * log_ratio(r))
    ),
    "bco": lambda c, r: classified(c, r, 0.01),
    "bco_unshifted": lambda c, r: classified(c, r, 0.01),
    "kto": lambda c, r: (
        2
        - sigmoid(0.1 * (log_ratio(c) - reference_point(c, r)))
        - sigmoid(0.1 * (reference_point(c, r) - log_ratio(r)))
    ),
    "aot": lambda c, r: -log_sigmoid(0.1 * margin(c, r)),
    "aot_unpaired": lambda c, r: -log_sigmoid(0.1 * margin(c, r)),
    "wpo": lambda c, r: -min(1.0, math.exp(alignment(c) + alignment(r))) * log_sigmoid(0.01 * margin(c, r)),
    "odpo": lambda c, r: -log_sigmoid(0.1 * margin(c, r)),
    "rso": lambda c, r: max(0.0, 1 - 0.1 * margin(c, r)),
    "slic_hf": lambda c, r: max(0.0, 1 - likelihood(c) + likelihood(r)) - 0.1 * likelihood(c),
    "cpo_simpo": lambda c, r: 0.05 * nll(c) - log_sigmoid(10.0 * (nll(r) - nll(c)) - 5.4),
    "alpha_po": lambda c, r: -log_sigmoid(2.5 * (math.exp(nll(r) / 4) - math.exp(nll(c) / 4)) / 0.25 - 0.1),
    "forward_kl_dpo": lambda c, r: -log_sigmoid(0.1 * (steep(-log_ratio(r)) - steep(-log_ratio(c)))),
    "alpha_divergence_dpo": lambda c, r: -log_sigmoid(0.2 * (steep(-log_ratio(r) / 2) - steep(-log_ratio(c) / 2))),
    "jensen_shannon_dpo": lambda c, r: -log_sigmoid(0.1 * (log_sigmoid(log_ratio(c)) - log_sigmoid(log_ratio(r)))),
    "sampo": lambda c, r: -log_sigmoid(0.1 * (log_ratio(sampled(c, r)) - log_ratio(sampled(r, c)))),
    "sppo": lambda c, r: (log_ratio(c) - 500.0) ** 2 + (log_ratio(r) + 500.0) ** 2,
    "apo_zero": lambda c, r: 1 - sigmoid(0.1 * log_ratio(c)) + sigmoid(0.1 * log_ratio(r)),
    "apo_down": lambda c, r: sigmoid(0.1 * log_ratio(c)) + 1 - sigmoid(0.1 * margin(c, r)),
    "orpo": lambda c, r: nll(c) - 0.1 * log_sigmoid(log_odds(c) - log_odds(r)),
    "cpo": lambda c, r: nll(c) - log_sigmoid(0.1 * (likelihood(c) - likelihood(r))),
    "rpo": lambda c, r: nll(c) - log_sigmoid(0.1 * margin(c, r)),
    "mpo": lambda c, r: nll(c) - 0.8 * log_sigmoid(0.1 * margin(c, r)) + 0.2 * classified(c, r),
    "direct_preference_matching": lambda c, r: -log_sigmoid(likelihood(c) - likelihood(r)),
    "direct_conditional_preference_matching": lambda c, r: -log_sigmoid(masked(c) - masked(r)),
}
PUBLISHED = {name: preset.make for name, preset in PRESETS.items()}

log_prob = st.floats(-12, -1e-3, allow_subnormal=False)  # odds of certainty are a tangent, and tested apart
tokens = st.lists(st.tuples(log_prob, log_prob, log_prob, log_prob), min_size=1, max_size=8)


def as_batch(sides: tuple[Tokens, Tokens]) -> PairLogProbs:
    width = max(map(len, sides))
    filled = torch.tensor([[side + [(9.0,) * 4] * (width - len(side)) for side in sides]], dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor([[[len(side)] for side in sides]])
    policy, reference, policy_prompted, reference_prompted = filled.unbind(-1)
    pair_seed = torch.tensor([DRAW])
    other = PairLogProbs(policy=policy_prompted, reference=reference_prompted, mask=mask, pair_seed=pair_seed)
    return replace(
        other, policy=policy, reference=reference, prompted=other, mismatched=other, collision=reference_prompted
    )


def test_every_preset_has_a_formula_and_is_exported() -> None:
    assert set(FORMULAS) == set(PRESETS) == set(PRESETS) & set(objectives.__all__)


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=15, deadline=None)
@given(c=tokens, r=tokens)
def test_agrees_with_its_formula(name: str, c: Tokens, r: Tokens) -> None:
    found = PUBLISHED[name]()(as_batch((c, r))).loss.item()
    assert found == pytest.approx(FORMULAS[name](c, r), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "name", sorted(set(PRESETS) - {"beta_dpo", "wpo"})
)  # a weight, or β, moves with the policy and passes no gradient
def test_gradient(name: str) -> None:
    pair_seed = torch.Generator().manual_seed(1)
    policy = -torch.rand(2, 2, 3, dtype=torch.float64, generator=pair_seed)
    mask = torch.arange(3) < torch.tensor([[[3], [2]], [[1], [3]]])
    drawn = torch.tensor([1, 2])
    other = PairLogProbs(policy=policy - 0.2, reference=policy.flip(0) - 0.5, mask=mask, pair_seed=drawn)
    logps = replace(other, policy=policy, reference=policy.flip(1) - 0.1, prompted=other, mismatched=other)
    objective = PUBLISHED[name]()
    assert torch.autograd.gradcheck(lambda lp: objective(replace(logps, policy=lp)).loss, (policy.requires_grad_(),))


@pytest.mark.parametrize(("preset", "key"), [(simpo, "gamma"), (r_dpo, "alpha"), (sr_dpo, "strength")])
def test_a_wrong_beta_is_named_before_it_divides(preset: Callable[..., PreferenceObjective], key: str) -> None:
    with pytest.raises(ValueError, match="Logistic.beta"):
        preset(beta=0.0)
    with pytest.raises(ValueError, match="expected a finite number in"):
        preset(**{key: -1.0})
