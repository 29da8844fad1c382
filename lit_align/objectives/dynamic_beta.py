"""An objective whose β follows the margins of the step, and which leaves out the pairs whose margins are unusual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.base import Needs, Objective, Part, Scale, refined
from lit_align.objectives.pair_seed import splitmix64
from lit_align.objectives.papers import BETA_DPO, Paper
from lit_align.objectives.preference import PreferenceObjective
from lit_align.types import Margin, Outcome, PairLogProbs, PairSeed

LEAST_BETA = 1e-3
"""Below this β does not fall, as in the authors' code."""
_MEAN, _DEVIATION, _BETA, _SHARE = "margin", "deviation", "beta", "share"


@dataclass(frozen=True)
class DynamicBeta(Part, Objective):
    """``loss`` at ``β (1 + a (mean m - M))``, over the pairs whose margins are likely under ``N(M, S²)``.

    M and S are moving averages of the mean and of the standard deviation of a step's margins, the step itself
    included; they begin at 0, as in the authors' code. A share of the pairs is left out: the others are sampled
    without replacement with the density of their margins as weights, and β is set by the mean margin of those that
    are kept. Which pairs those are follows from their seeds, whatever batch or process they are in. At least one pair
    is kept, and the loss of those that are is scaled so that its mean over all pairs is the mean over the kept ones.
    M, S and β are carried as the objective's state. No gradient passes through β or the choice of pairs.
    Where the order of pairs is uncertain, both orders count with the β and the pairs that the stated one gives.

    Paper: β-DPO, Wu et al. 2024, arXiv:2407.08639; the formulas are those of the authors' code, where moving averages
    advance in evaluation, too; here they do not.

    Args:
        objective: gives margins and losses; its β is the one that a step with the usual mean margin has.
        sensitivity: a, by what share of β a nat of difference between mean margins moves it, 0 or more.
        dropped: share of a step's pairs that is left out, in [0, 1).
        momentum: weight of the earlier steps in the moving averages, in [0, 1).

    >>> from lit_align.objectives import dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> from dataclasses import replace
    >>> pair = replace(worked_pair(), pair_seed=torch.tensor([1]))
    >>> DynamicBeta(dpo(0.1))(pair).loss  # M = 0.7, β = 0.1 (1 + 0.6 · 6.3) = 0.478: -log σ(3.346)
    tensor([0.0346])
    """

    objective: PreferenceObjective
    sensitivity: float = 0.6
    dropped: float = 0.2
    momentum: float = 0.9
    source: ClassVar[Paper | None] = BETA_DPO
    ranges: ClassVar[Mapping[str, str]] = {"sensitivity": "[0, inf)", "dropped": "[0, 1)", "momentum": "[0, 1)"}

    @property
    @override
    def needs(self) -> Needs:
        return self.objective.needs | Needs(batch_level=True, pair_seed=True)

    @property
    @override
    def initial_state(self) -> Mapping[str, float]:
        return {_MEAN: 0.0, _DEVIATION: 0.0, _BETA: self.objective.contrast.beta}

    @override
    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: observed[name] for name in state}

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        return self.objective.scales

    @property
    @override
    def prompted_length_power(self) -> float | None:
        return self.objective.prompted_length_power

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        if logps.pair_seed is None:
            raise ValueError(
                "DynamicBeta samples the pairs of a step, but PairLogProbs.pair_seed is None; "
                "expected a number for each pair"
            )
        margins = self.objective.margin(logps).detach().double()
        mean = self._moved(logps, _MEAN, margins.mean())
        deviation = self._moved(logps, _DEVIATION, margins.std(correction=min(1, len(margins) - 1)))
        unusual = torch.where(deviation > 0, (margins - mean) / deviation, 0.0)
        kept = sample_pairs(-0.5 * unusual**2, max(1, int(len(margins) * (1 - self.dropped))), logps.pair_seed)
        beta = self.objective.contrast.beta * (1 + self.sensitivity * (margins[kept].mean() - mean))
        beta = beta.clamp(min=min(LEAST_BETA, self.objective.contrast.beta))
        outcome = self._at(float(beta))(logps)
        share = (kept / kept.double().mean()).to(outcome.loss.dtype)
        state = {_MEAN: mean, _DEVIATION: deviation, _BETA: beta}
        return replace(
            outcome,
            loss=share * outcome.loss,
            observed={name: value.expand(len(margins)) for name, value in state.items()} | {_SHARE: share},
        )

    def _moved(self, logps: PairLogProbs, name: str, value: Tensor) -> Tensor:
        earlier = logps.state.get(name, torch.zeros_like(value)).to(value)
        return self.momentum * earlier + (1 - self.momentum) * value

    def _at(self, beta: float) -> PreferenceObjective:
        return replace(self.objective, contrast=replace(cast(Any, self.objective.contrast), beta=beta))

    @override
    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin:
        scaled = self._at(float(outcome.observed[_BETA][0]))
        if logps.preference_probability is None:
            return outcome.observed[_SHARE] * scaled.contrast.slope(refined(outcome)).abs()
        return outcome.observed[_SHARE] * scaled.slope(logps, outcome)


def sample_pairs(log_weights: Margin, count: int, pair_seed: PairSeed) -> Tensor:
    """Sample pairs without replacement, each draw in proportion to the weights of those that are left.

    Every pair gets the key ``log w - log(-log u)`` with a uniform number u that is hashed from its seed, and those
    with the largest keys are sampled (Gumbel top-k): the order of the pairs does not matter.

    Args:
        log_weights: log w of each pair, float64.
        count: how many to sample.
        pair_seed: a number per pair.

    Returns:
        True for the pairs that were sampled.

    >>> sample_pairs(torch.tensor([0.0, -900.0, 0.0]).double(), 2, torch.tensor([3, 4, 5]))
    tensor([ True, False,  True])
    """
    uniform = (((splitmix64(pair_seed.long()) >> 11) & ((1 << 53) - 1)).double() + 0.5) / 2**53
    keys = log_weights - (-uniform.log()).log()
    return torch.zeros_like(keys, dtype=torch.bool).index_fill(0, keys.topk(count).indices, True)
