"""Claims about likelihoods, about objectives of single responses, and about the regularised problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from lit_align.objectives import (
    KL,
    SFT,
    ConditionalMatching,
    Entropy,
    Regularizer,
    Sum,
    nca,
)
from lit_align.testbed.operators import averaged, tilted, unaveraged, win_rate

from .claim import ALPHA, Claim, reference_product
from .tabular import (
    LENGTHS,
    Pairs,
    World,
    distribution,
    minimised,
    token_log_probs,
    trained,
)


def likelihoods(world: World) -> Iterator[Claim]:
    """Claims about objectives of single responses; pairs are sampled from the reference."""
    reference = distribution(world.reference)
    pairs = Pairs(world, reference)
    train = partial(partial, trained)
    wins = win_rate(world.reward, reference)
    chosen = 2 * reference * wins
    yield Claim(
        *("`nca(1)`, pairs drawn from π_ref", "2 P π_ref", train(nca(1.0), pairs), chosen),
        *("`nca(½)`", train(nca(0.5), pairs)),
        *("P² π_ref", torch.softmax(reference.log() + 2 * wins.log(), -1)),
    )
    yield Claim(
        *("SFT, Sum", "q, the distribution of chosen responses", train(SFT(Sum()), pairs), chosen),
        *("SFT, Mean", train(SFT(), pairs)),
        *("π_ref", reference),
    )
    shorter = torch.softmax(chosen.log() - LENGTHS.log(), -1)
    yield Claim(
        *("SFT, Mean", "q / n: short responses gain", train(SFT(), pairs), shorter),
        *("SFT, Sum", train(SFT(Sum()), pairs)),
        *("A q", averaged(chosen, LENGTHS)),
    )


def problems(world: World) -> Iterator[Claim]:
    """Claims about the regularised problems: expected reward minus β times the penalty, solved by enumeration."""
    reference = distribution(world.reference)
    unlikely = reference_product(world, below=True)

    def solved(regularizer: Regularizer, beta: float) -> Callable[[], Tensor]:
        def loss(policy: Tensor) -> Tensor:
            penalty = regularizer(policy, world.reference).sum(-1)
            return -(distribution(policy) * (world.reward - beta * penalty)).sum()

        return lambda: distribution(token_log_probs(minimised(loss, world)))

    def solved_averaged(beta: float) -> Tensor:
        def loss(policy: Tensor) -> Tensor:
            mean, mean_reference = averaged(distribution(policy), LENGTHS), averaged(reference, LENGTHS)
            return -(mean * (world.reward - beta * (mean.log() - mean_reference.log()))).sum()

        return distribution(token_log_probs(minimised(loss, world)))

    yield Claim(
        *("max E[r] − β E[Σ penalty], KL", "π_ref exp(r/β)", solved(KL(), 0.5), tilted(reference, world.reward, 0.5)),
        *("the same, Entropy", solved(Entropy(), 0.5)),
        *("π_ref exp(r/β²)", tilted(reference, world.reward, 0.5**2)),
    )
    yield Claim(
        *("the same, Entropy, β = 1", "softmax(r)", solved(Entropy(), 1.0), torch.softmax(world.reward, -1)),
        *("the same, KL", solved(KL(), 1.0)),
        *("π_ref exp(r)", tilted(reference, world.reward, 1.0)),
    )
    yield Claim(
        *("the same, ConditionalMatching(α)", "exp(r/β) Π_{t: π_ref ≤ α} π_ref(y_t)"),
        *(solved(ConditionalMatching(ALPHA), 0.5), tilted(unlikely, world.reward, 0.5)),
        *("the same, KL", solved(KL(), 0.5)),
        *("exp(r/β) Π_{t: π_ref > α} π_ref(y_t)", tilted(reference_product(world, below=False), world.reward, 0.5)),
    )
    yield Claim(
        *("max E_{Aπ}[r] − β KL(Aπ ‖ Aπ_ref)", "A⁻¹ G_β(r; A π_ref)", lambda: solved_averaged(0.5)),
        unaveraged(tilted(averaged(reference, LENGTHS), world.reward, 0.5), LENGTHS),
        *("the same without A", solved(KL(), 0.5)),
        *("A G_β(r; A π_ref)", averaged(tilted(averaged(reference, LENGTHS), world.reward, 0.5), LENGTHS)),
    )
