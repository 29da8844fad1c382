"""What a run says about its pairs: weighted means as sums and counts, so that any split gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.types import Margin, Outcome, PairBatch, PairLogProbs

NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "margin/plain",
    "margin/offset",
    "margin/refined",
    "margin/prompted",
    "margin/saturated",
    "log_probs/chosen/sum",
    "log_probs/chosen/mean",
    "log_probs/rejected/sum",
    "log_probs/rejected/mean",
    "lengths/chosen",
    "lengths/rejected",
    "lengths/gap",
    "lengths/truncated",
)
SATURATED = 1e-6
"""A pair whose loss moves less than this per nat teaches nothing any more, however wrong it may be."""
CORRELATION = "lengths/margin_correlation"


class PairMetrics(Metric):
    """Means over pairs of everything in the glossary, weighted by ``PairBatch.weight``.

    Reads the ``Outcome`` and nothing else for rewards and margins, so what is reported is what was optimised.
    A number that the objective does not form (a margin for a plain likelihood, say) is absent, not zero.
    ``lengths/margin_correlation`` is Pearson's r between the reward margin and the length gap chosen − rejected.

    Args:
        terms: names of the loss's terms, reported as ``loss/<term>``.
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor
    moments: Tensor

    def __init__(self, terms: Sequence[str] = ()) -> None:
        super().__init__()
        self.names = (*NAMES, *(f"loss/{term}" for term in terms))
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("weights", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("moments", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outcome: Outcome, logps: PairLogProbs, batch: PairBatch) -> None:
        """Add the pairs of one batch."""
        weight = batch.weight.double()
        values = {**_losses_and_margins(outcome), **_rewards(outcome), **_sides(logps, batch)}
        for name, value in values.items():
            place = self.names.index(name)
            self.sums[place] += (value.detach().double() * weight).sum()
            self.weights[place] += weight.sum()
        if "rewards/margins" in values:
            self.moments += _moments(values["rewards/margins"].double(), values["lengths/gap"].double(), weight)

    def compute(self) -> dict[str, Tensor]:
        """Name to mean, for the numbers that were there to be averaged."""
        means = {
            name: (self.sums[place] / self.weights[place]).float()
            for place, name in enumerate(self.names)
            if self.weights[place] > 0
        }
        if self.moments[0] > 0:
            means[CORRELATION] = _pearson(self.moments).float()
        return means


def _losses_and_margins(outcome: Outcome) -> dict[str, Margin]:
    values = {"loss": outcome.loss, **{f"loss/{name}": loss for name, loss in outcome.terms.items()}}
    if outcome.margin is not None:
        values["margin/plain"] = outcome.margin
        if outcome.offset is not None:
            values |= {"margin/offset": outcome.offset, "margin/refined": outcome.margin - outcome.offset}
    if outcome.slope is not None:
        values["margin/saturated"] = (outcome.slope < SATURATED).double()
    if outcome.prompted_margin is not None:
        values["margin/prompted"] = outcome.prompted_margin
    return values


def _rewards(outcome: Outcome) -> dict[str, Margin]:
    values = {"rewards/chosen": outcome.rewards[:, 0]}
    if outcome.rewards.shape[1] == 2:
        gap = outcome.rewards[:, 0] - outcome.rewards[:, 1]
        values["rewards/rejected"] = outcome.rewards[:, 1]
        values["rewards/margins"] = gap
        values["rewards/accuracies"] = (gap > 0).double() + 0.5 * (gap == 0).double()
    return values


def _sides(logps: PairLogProbs, batch: PairBatch) -> dict[str, Margin]:
    sums, lengths = logps.policy.detach().double().sum(-1), logps.mask.sum(-1).double()
    values = {"lengths/truncated": batch.truncated.double().mean(-1)}
    for side, name in enumerate(("chosen", "rejected")[: sums.shape[1]]):
        values[f"log_probs/{name}/sum"] = sums[:, side]
        values[f"log_probs/{name}/mean"] = sums[:, side] / lengths[:, side]
        values[f"lengths/{name}"] = lengths[:, side]
    if sums.shape[1] == 2:
        values["lengths/gap"] = lengths[:, 0] - lengths[:, 1]
    return values


def _moments(x: Margin, y: Margin, weight: Margin) -> Tensor:
    return torch.stack([(weight * part).sum() for part in (torch.ones_like(x), x, y, x * x, y * y, x * y)])


def _pearson(moments: Tensor) -> Tensor:
    count, x, y, xx, yy, xy = moments
    covariance = xy / count - (x / count) * (y / count)
    spread = (xx / count - (x / count) ** 2).clamp_min(0) * (yy / count - (y / count) ** 2).clamp_min(0)
    return torch.where(spread > 0, covariance / spread.sqrt(), torch.zeros_like(spread))
