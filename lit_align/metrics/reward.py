"""Means over the scores of a reward model, exact over unequal batches and ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.metrics.calibration import BINS, Reliability
from lit_align.metrics.pairs import correlation, moments_of
from lit_align.types import Margin, Outcome, PairBatch

REWARD_METRICS = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("calibration/brier", "lengths/chosen", "lengths/rejected", "lengths/truncated"),
)
OTHER_METRICS = ("calibration/ece", "lengths/score_correlation", "lengths/margin_correlation")
"""Numbers of all pairs together, which are no means over pairs."""


class RewardMetrics(Metric):
    """Means over pairs, calibration, and how far scores follow length.

    ``rewards/*`` are scores as they come; ``calibration/ece`` and ``calibration/brier`` judge ``σ(β (s_w - s_l))``,
    what the contrast makes of the scores; ``lengths/score_correlation`` is Pearson's r between the score
    and the length of a response, ``lengths/margin_correlation`` between their gaps within a pair.

    Args:
        beta: inverse temperature of the contrast.
    """

    full_state_update = False
    sums: Tensor
    bins: Tensor
    singles: Tensor
    gaps: Tensor

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        states = {"sums": (len(REWARD_METRICS) + 1,), "bins": (BINS, 3), "singles": (6,), "gaps": (6,)}
        for name, shape in states.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outcome: Outcome, batch: PairBatch) -> None:
        """Add the pairs of one batch."""
        weight, scores = batch.weight.double(), outcome.rewards.double()
        gap = scores[:, 0] - scores[:, 1]
        chances = (self.beta * gap).sigmoid()
        lengths = batch.lengths.double()
        values: dict[str, Margin] = {
            "loss": outcome.loss.detach().double(),
            "rewards/chosen": scores[:, 0],
            "rewards/rejected": scores[:, 1],
            "rewards/margins": gap,
            "rewards/accuracies": (gap > 0).double() + 0.5 * (gap == 0).double(),
            "calibration/brier": (1 - chances) ** 2,
            "lengths/chosen": lengths[:, 0],
            "lengths/rejected": lengths[:, 1],
            "lengths/truncated": batch.truncated.double().mean(-1),
        }
        rows = [*(values[name] for name in REWARD_METRICS), torch.ones_like(weight)]
        self.sums += (torch.stack(rows) * weight).sum(-1)
        self.bins += Reliability.of(chances, weight).sums
        both = weight.repeat_interleave(2)
        self.singles += moments_of(scores.flatten(), lengths.flatten(), both)
        self.gaps += moments_of(gap, lengths[:, 0] - lengths[:, 1], weight)

    def compute(self) -> dict[str, Tensor]:
        """Return name to number."""
        named = {name: (self.sums[place] / self.sums[-1]).float() for place, name in enumerate(REWARD_METRICS)}
        named["calibration/ece"] = self.reliability.error().float()
        named["lengths/score_correlation"] = correlation(self.singles).float()
        named["lengths/margin_correlation"] = correlation(self.gaps).float()
        return named

    @property
    def reliability(self) -> Reliability:
        """The reliability curve of the pairs so far, of this process."""
        return Reliability(self.bins)
