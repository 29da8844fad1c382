"""How well the preferences of a reward model or a policy agree with what they should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.online.matching import PairedPreferences

BINS = 10


@final
@dataclass(frozen=True)
class Reliability:
    """How often the likelier side is the preferred one, by how likely it is said to be.

    Args:
        sums: for each of ``BINS`` equal parts of [½, 1]: weight, weight × confidence, weight × right.
    """

    sums: Tensor

    @classmethod
    def of(cls, chances: Tensor, weight: Tensor) -> Reliability:
        """Count pairs by the probability that each gives to the chosen side.

        Args:
            chances: probabilities, ``[pair]``; one half exactly is half right.
            weight: of each pair.

        >>> Reliability.of(torch.tensor([0.9, 0.9, 0.9, 0.1]), torch.ones(4)).error()  # |0.9 - 0.75|
        tensor(0.1500, dtype=torch.float64)
        """
        sure = torch.maximum(chances, 1 - chances).double()
        right = (chances > 0.5).double() + 0.5 * (chances == 0.5).double()
        place = ((sure - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
        values = torch.stack([torch.ones_like(sure), sure, right], dim=1) * weight.double()[:, None]
        return cls(torch.zeros(BINS, 3, dtype=torch.float64, device=sure.device).index_add(0, place, values))

    def error(self) -> Tensor:
        """Return the expected calibration error: ``Σ_bin share · |mean confidence - share right|``, 0 to ½."""
        weight, sure, right = self.sums.unbind(-1)
        return (sure - right).abs().sum() / weight.sum()

    def curve(self) -> list[tuple[float, float]]:
        """Return mean confidence and share right of each bin that has pairs."""
        filled = self.sums[self.sums[:, 0] > 0]
        sure, right = filled[:, 1] / filled[:, 0], filled[:, 2] / filled[:, 0]
        return list(zip(sure.tolist(), right.tolist(), strict=True))


class MatchingDivergence(Metric):
    """D1 and D2 of arXiv:2405.16455 over pairs, and what their figures are drawn from.

    Both are 0 exactly where ``log π₁ - log π₂ = r₁ - r₂``: D1 is the mean square of the difference, D2 the mean
    ``KL(Bern(σ(r₁ - r₂)) ‖ Bern(σ(log π₁ - log π₂)))`` in nats. Every pair is also counted the other way round, so
    nothing depends on the order of the two responses.
    """

    full_state_update = False
    sums: Tensor
    scores: Tensor
    policy: Tensor
    curve: Tensor

    def __init__(self) -> None:
        super().__init__()
        shapes = {"sums": (3,), "scores": (BINS,), "policy": (BINS,), "curve": (BINS, 3)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, pairs: PairedPreferences, weight: Tensor) -> None:
        """Add pairs."""
        weight = weight.double()
        exact = PairedPreferences(pairs.score_gap.double(), pairs.log_prob_gap.double())
        for place, values in enumerate((torch.ones_like(weight), exact.squared(), exact.bernoulli())):
            self.sums[place] += (weight * values).sum()
        for gap_sign in (1, -1):
            seen = PairedPreferences(gap_sign * exact.score_gap, gap_sign * exact.log_prob_gap)
            scores, policy = seen.of_scores(), seen.of_policy()
            self.scores.index_add_(0, _bin(scores), weight)
            self.policy.index_add_(0, _bin(policy), weight)
            row = torch.stack([torch.ones_like(scores), scores, policy], dim=1) * weight[:, None]
            self.curve.index_add_(0, _bin(scores), row)

    def compute(self) -> dict[str, Tensor]:
        """Return ``d1`` and ``d2``; nothing without pairs."""
        if not self.sums[0] > 0:
            return {}
        return {"d1": (self.sums[1] / self.sums[0]).float(), "d2": (self.sums[2] / self.sums[0]).float()}


def _bin(chances: Tensor) -> Tensor:
    return (chances * BINS).long().clamp(0, BINS - 1)
