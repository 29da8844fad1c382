"""Histograms of reward margins by the length of the chosen response, and how sure the margins are rightly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.metrics.calibration import BINS, Reliability
from lit_align.metrics.pair_values import BUCKETS, length_bucket, on_device

_POSITIVE = (0.05 * torch.linspace(0, 6.5, 21, dtype=torch.float64)[1:].sinh()).tolist()
EDGES = [*(-edge for edge in reversed(_POSITIVE)), 0.0, *_POSITIVE]
"""Edges of the histograms: finest around 0, where margins start, out to ±16.6; what is beyond counts at the ends."""


class MarginsByLength(Metric):
    """Counts pairs by their reward margin, within the buckets of ``rewards/accuracies/chosen_<bucket>``.

    States are sums, so the counts are exact over unequal batches and ranks.
    """

    full_state_update = False
    counts: Tensor
    won: Tensor
    reliability: Tensor

    def __init__(self) -> None:
        super().__init__()
        shapes = {"counts": (len(BUCKETS), len(EDGES) - 1), "won": (len(BUCKETS),), "reliability": (BINS, 3)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rewards: Tensor, lengths: Tensor, weight: Tensor) -> None:
        """Add pairs; those with one response, and batches of chosen responses alone, count nothing.

        Args:
            rewards: ``[pair, side]``.
            lengths: scored tokens, ``[pair, side]``; 0 for an absent response.
            weight: of each pair.
        """
        if rewards.shape[1] != 2:
            return
        both = (lengths > 0).all(-1)
        weight = weight.double() * both
        margin = torch.where(both, rewards[:, 0] - rewards[:, 1], 0.0).double()
        bucket = length_bucket(lengths.double())
        place = torch.searchsorted(on_device(tuple(EDGES), torch.float32, margin.device), margin, right=True) - 1
        width = self.counts.shape[1]
        flat = bucket * width + place.clamp(0, width - 1)
        self.counts += torch.zeros_like(self.counts).view(-1).index_add(0, flat, weight).view_as(self.counts)
        won = (margin > 0).double() + 0.5 * (margin == 0).double()
        self.won += torch.zeros_like(self.won).index_add(0, bucket, weight * won)
        self.reliability += Reliability.of(margin.sigmoid(), weight).sums

    def compute(self) -> dict[str, Any]:
        """Return edges, and pairs, pairs ranked right, and counts of each bucket, as plain data."""
        buckets = {
            name: {
                "pairs": float(self.counts[number].sum()),
                "won": float(self.won[number]),
                "counts": self.counts[number].tolist(),
            }
            for number, name in enumerate(BUCKETS)
        }
        return {"edges": EDGES, "buckets": buckets, "reliability": self.reliability.tolist()}
