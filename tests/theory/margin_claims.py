"""Claims about objectives that compare the two responses of a pair by their margin."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from lit_align.objectives import (
    Alpha,
    Entropy,
    ForwardKL,
    JensenShannon,
    LengthPower,
    Logistic,
    Mean,
    PreferenceObjective,
    SelfRefine,
    Square,
    averaged_dpo,
    averaged_ipo,
    cdpo,
    direct_conditional_preference_matching,
    direct_preference_matching,
    dpo,
    ipo_sum,
    r_dpo,
    robust_dpo,
    sr_dpo,
    sr_ipo,
)
from lit_align.testbed.operators import averaged, tilted, unaveraged, win_rate

from .claim import ALPHA, Claim, reference_product, summing_to_one
from .tabular import (
    LENGTHS,
    Pairs,
    World,
    distribution,
    fixed_point,
    trained,
    trained_on_probabilities,
)


def margin_claims(world: World) -> Iterator[Claim]:
    """Iterate over all claims about margins in a world."""
    yield from sums(world)
    yield from averages(world)
    yield from refinements(world)
    yield from matching(world)
    yield from divergences(world)


def sums(world: World) -> Iterator[Claim]:
    """Claims about sums of log-ratios."""
    pairs, reference = Pairs(world, world.raters_see), distribution(world.reference)
    train = partial(partial, trained)
    wins = win_rate(world.reward, world.raters_see)
    yield Claim(
        *("`dpo(β)`", "π_ref exp(r/β)", train(dpo(0.5), pairs), tilted(reference, world.reward, 0.5)),
        *("`averaged_dpo(β)`", train(averaged_dpo(0.5), pairs)),
        *("π_ref exp(r/β²)", tilted(reference, world.reward, 0.5**2)),
    )
    noisy = Pairs(world, world.raters_see, flipped=0.2)
    yield Claim(
        *("`robust_dpo(β, ε)`, a share ε of the labels flipped", "π_ref exp(r/β)"),
        *(train(robust_dpo(0.5, 0.2), noisy), tilted(reference, world.reward, 0.5)),
        *("`cdpo(β, ε)` on the same labels", train(cdpo(0.5, 0.2), noisy)),
        *("exp(r/β)", torch.softmax(world.reward / 0.5, -1)),
    )
    yield Claim(
        *("`dpo(β)`, a preference probability for each row", "π_ref exp(r/β)"),
        *(partial(trained_on_probabilities, dpo(0.5), pairs), tilted(reference, world.reward, 0.5)),
        *("`dpo(2 β)` on the same rows", partial(trained_on_probabilities, dpo(1.0), pairs)),
        *("π_ref", reference),
    )
    yield Claim(
        *("`r_dpo(β, α)`", "π_ref exp((r − α n)/β)"),
        *(train(r_dpo(0.5, 0.3), pairs), tilted(reference, world.reward - 0.3 * LENGTHS, 0.5)),
        *("`dpo(β)`", train(dpo(0.5), pairs)),
        *("π_ref exp((r + α n)/β)", tilted(reference, world.reward + 0.3 * LENGTHS, 0.5)),
    )
    yield Claim(
        *("`ipo_sum(β)`", "π_ref exp(P/β), P(y) = Σ_z μ(z) σ(r(y) − r(z))"),
        *(train(ipo_sum(0.2), pairs), tilted(reference, wins, 0.2)),
        *("`dpo(β)`", train(dpo(0.2), pairs)),
        *("π_ref exp(r/β)", tilted(reference, world.reward, 0.2)),
    )


def averages(world: World) -> Iterator[Claim]:
    """Claims about averaged log-ratios, whose optimum is a tilt between the operators A and A⁻¹."""
    pairs, reference = Pairs(world, world.raters_see), distribution(world.reference)
    train = partial(partial, trained)
    wins = win_rate(world.reward, world.raters_see)

    def around(reward: Tensor, beta: float, power: float = 1.0) -> Tensor:
        return unaveraged(tilted(averaged(reference, LENGTHS, power), reward, beta), LENGTHS, power)

    yield Claim(
        *("`averaged_dpo(β)`", "A⁻¹ G_β(r; A π_ref)", train(averaged_dpo(1.5), pairs), around(world.reward, 1.5)),
        *("`dpo(β)`", train(dpo(1.5), pairs)),
        *("G_β(r; A π_ref)", tilted(averaged(reference, LENGTHS), world.reward, 1.5)),
    )
    yield Claim(
        *("`averaged_ipo(β)`", "A⁻¹ G_β(P; A π_ref)", train(averaged_ipo(0.5), pairs), around(wins, 0.5)),
        *("`ipo_sum(β)`", train(ipo_sum(0.5), pairs)),
        *("A⁻¹ G_β(r; A π_ref)", around(world.reward, 0.5)),
    )
    yield Claim(
        *("Logistic(β), LengthPower(½)", "A⁻¹ G_β(r; A π_ref), A with √n for n"),
        *(train(PreferenceObjective(Logistic(1.0), LengthPower(0.5)), pairs), around(world.reward, 1.0, 0.5)),
        *("Logistic(β), Mean", train(averaged_dpo(1.0), pairs)),
        *("A⁻¹ G_β(r; A π_ref), A with n", around(world.reward, 1.0)),
    )
    reference_free = PreferenceObjective(Logistic(1.5), Mean(), regularizer=Entropy())
    yield Claim(
        *("`simpo(β, γ = 0)`", "A⁻¹ exp(r/β)", train(reference_free, pairs)),
        unaveraged(torch.softmax(world.reward / 1.5, -1), LENGTHS),
        *("`averaged_dpo(β)`", train(averaged_dpo(1.5), pairs)),
        *("exp(r/β)", torch.softmax(world.reward / 1.5, -1)),
    )


def refinements(world: World) -> Iterator[Claim]:
    """Claims about refinement by a fixed prompted margin, of log-ratios u(y) under p ⊕ x, and by the margin itself."""
    pairs, reference = Pairs(world, world.raters_see), distribution(world.reference)
    train = partial(partial, trained)
    prompted = (world.prompted - world.prompted_reference).sum(-1)
    wins = win_rate(world.reward, world.raters_see)
    both = tilted(reference, world.reward + 0.5 * 0.4 * prompted, 0.5)
    yield Claim(
        *("`sr_dpo(β, λ)`", "π_ref exp(r/β + λ u)", train(sr_dpo(0.5, 0.4), pairs), both),
        *("`dpo(β)`", train(dpo(0.5), pairs)),
        *("π_ref exp(r/β − λ u)", tilted(reference, world.reward - 0.5 * 0.4 * prompted, 0.5)),
    )
    yield Claim(
        *("`sr_dpo(β, λ)`, p empty", "π_ref exp(r/(β(1 − λ)))", partial(fixed_point, sr_dpo(0.8, 0.4), pairs)),
        tilted(reference, world.reward, 0.8 * (1 - 0.4)),
        *("`dpo(β)`", train(dpo(0.8), pairs)),
        *("π_ref exp(r/(β(1 + λ)))", tilted(reference, world.reward, 0.8 * (1 + 0.4))),
    )
    yield Claim(
        *("`sr_ipo(β, λ)`", "π_ref exp(P/β + λ β u)", train(sr_ipo(0.3, 0.8), pairs)),
        tilted(reference, wins / 0.3 + 0.8 * 0.3 * prompted, 1.0),
        *("Square(β), SelfRefine(λ)", train(PreferenceObjective(Square(0.3), refinement=SelfRefine(0.8)), pairs)),
        *("π_ref exp(P/β + λ u)", tilted(reference, wins / 0.3 + 0.8 * prompted, 1.0)),
    )


def matching(world: World) -> Iterator[Claim]:
    """Claims about preference matching: without the reference, or with it at the tokens that it finds unlikely."""
    pairs, reference = Pairs(world, world.raters_see), distribution(world.reference)
    train = partial(partial, trained)
    yield Claim(
        *("`direct_preference_matching(1)`", "softmax(r)", train(direct_preference_matching(1.0), pairs)),
        torch.softmax(world.reward, -1),
        *("`dpo(1)`", train(dpo(1.0), pairs)),
        *("π_ref exp(r)", tilted(reference, world.reward, 1.0)),
    )
    unlikely, likely = reference_product(world, below=True), reference_product(world, below=False)
    yield Claim(
        *("`direct_conditional_preference_matching(β, α)`", "exp(r/β) Π_{t: π_ref ≤ α} π_ref(y_t)"),
        *(train(direct_conditional_preference_matching(0.8, ALPHA), pairs), tilted(unlikely, world.reward, 0.8)),
        *("`direct_preference_matching(β)`", train(direct_preference_matching(0.8), pairs)),
        *("exp(r/β) Π_{t: π_ref > α} π_ref(y_t)", tilted(likely, world.reward, 0.8)),
    )


def divergences(world: World) -> Iterator[Claim]:
    """Claims about f-divergences: the score h is linear in the reward, and a constant makes the policy sum to 1."""
    pairs, reference = Pairs(world, world.raters_see), distribution(world.reference)
    train = partial(partial, trained)
    scores = {
        "ForwardKL": (ForwardKL(), "π_ref / (1 − r/β − c)", lambda v: -torch.log1p(-v)),
        "JensenShannon": (
            JensenShannon(),
            "π_ref / (2 exp(−r/β − c) − 1)",
            lambda v: -torch.log(2 * torch.exp(-v) - 1),
        ),
        "Alpha(½)": (Alpha(0.5), "π_ref / (1 − (r/β + c)/2)²", lambda v: -2 * torch.log1p(-v / 2)),
    }
    for name, (divergence, formula, inverse) in scores.items():
        objective = PreferenceObjective(Logistic(0.5), divergence=divergence)
        yield Claim(
            *(f"Logistic(β), {name}", formula, train(objective, pairs)),
            *(summing_to_one(reference, world.reward / 0.5, inverse), "`dpo(β)`", train(dpo(0.5), pairs)),
            *(f"{formula}, β²", summing_to_one(reference, world.reward / 0.5**2, inverse)),
        )
