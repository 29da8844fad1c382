"""Where alignment would end on the testbed if nothing were estimated: closed forms over what demonstrations contain.

A response is taken as its number of facts and of filler sentences. The reference is the writer of demonstrations,
whose distribution over them is known; the policy that was fine-tuned on demonstrations is close to it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import product

import torch

from lit_align.testbed.operators import averaged, tilted, unaveraged
from lit_align.testbed.preferences import DEMONSTRATION
from lit_align.testbed.truth import WORD_COST
from lit_align.testbed.world import FILLERS, KINDS, WorldSettings

FACT_WORDS = 2 + statistics.mean(len(kind.split()) for kind in KINDS)
FILLER_WORDS = statistics.mean(len(text.split()) for text in FILLERS)
FILLER_TOKENS = statistics.mean(len(text.replace(",", " ,").replace(".", " .").split()) for text in FILLERS)


@dataclass(frozen=True)
class Optimum:
    """Expectations under an optimal policy, over posts of all sizes.

    Args:
        length: tokens of a response, with the token that ends it.
        score: true score.
        kl: divergence from the reference.
    """

    length: float
    score: float
    kl: float


def optimum(beta: float, power: float, world: WorldSettings) -> Optimum:
    """Return the optimum for log-ratios that are divided by the length to a power.

    Args:
        beta: inverse temperature, at the scale of the power; infinite for the reference.
        power: 0 for sums, 1 for means.
        world: gives the raters' bonus for length and the sizes of posts.
    """
    sizes = range(world.least_facts, world.most_facts + 1)
    parts = [_of_size(size, beta, power, world.length_bonus) for size in sizes]
    return Optimum(*(statistics.mean(values) for values in zip(*parts, strict=True)))


def _of_size(facts: int, beta: float, power: float, bonus: float) -> tuple[float, float, float]:
    kinds = torch.tensor(list(product(range(1, facts + 1), range(DEMONSTRATION.filler + 1))), dtype=torch.float64)
    stated, filler = kinds.unbind(-1)
    words = FACT_WORDS * stated + FILLER_WORDS * filler
    lengths = (FACT_WORDS + 1) * stated + FILLER_TOKENS * filler + 1
    score = stated - WORD_COST * words
    reference = torch.full_like(score, 1 / len(score))
    policy = tilted(averaged(reference, lengths, power), score + bonus * words, beta)
    policy = unaveraged(policy, lengths, power) if power else policy  # of sums it is the policy itself
    kl = torch.xlogy(policy, policy / reference).sum()
    return float((policy * lengths).sum()), float((policy * score).sum()), float(kl)
