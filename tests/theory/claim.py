"""A claim: the optimum of an objective in closed form, compared with the policy that exact training reaches.

Each claim has two wrong variants, which must fail the comparison: another objective, whose trained policy is compared
with the right closed form, and another closed form, which is compared with the policy of the right objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_align.testbed.operators import HALVINGS, total_variation

from .tabular import World

ALPHA = 0.3
"""Threshold of conditional matching, which about half of the tokens of these worlds are below."""


@dataclass(frozen=True)
class Claim:
    """A line of the table.

    Args:
        name: the objective, or the problem.
        formula: the closed form of its optimum, as text.
        reach: trains the objective and returns π(y | x).
        optimum: π(y | x) by the closed form.
        wrong_name: an objective that must not reach the optimum.
        wrong_reach: trains the wrong objective.
        wrong_formula: a closed form that must not describe the optimum, as text.
        wrong_optimum: π(y | x) by the wrong closed form.
    """

    name: str
    formula: str
    reach: Callable[[], Tensor]
    optimum: Tensor
    wrong_name: str
    wrong_reach: Callable[[], Tensor]
    wrong_formula: str
    wrong_optimum: Tensor

    def measured(self) -> tuple[float, float, float]:
        """Return the largest total variation over prompts: of the claim, the wrong objective, the wrong formula."""
        reached = self.reach()
        pairs = ((reached, self.optimum), (self.wrong_reach(), self.optimum), (reached, self.wrong_optimum))
        own, objective, formula = (float(total_variation(*pair).max()) for pair in pairs)
        return own, objective, formula


def reference_product(world: World, below: bool) -> Tensor:
    """Return Π_t π_ref(y_t) over the tokens with π_ref ≤ α, or over the other tokens; not normalised."""
    unlikely = world.reference.exp() <= ALPHA
    return torch.where(unlikely if below else ~unlikely, world.reference, 0.0).sum(-1).exp()


def summing_to_one(reference: Tensor, tilt: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Return π_ref exp(h⁻¹(tilt + c)), where c is chosen by bisection so that the sum is 1."""
    low = tilt.new_full((tilt.shape[0], 1), -1e3)
    high = tilt.new_full((tilt.shape[0], 1), 1e3)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        total = (reference * inverse(tilt + middle).exp()).sum(-1, keepdim=True)
        too_much = ~(total < 1)  # h⁻¹ is nan above the largest score
        low, high = torch.where(too_much, low, middle), torch.where(too_much, middle, high)
    return reference * inverse(tilt + low).exp()
