"""Weighted means over the pairs of a run, kept as sums and counts, so that any split gives the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.metrics.pair_values import (
    PAIR_METRICS,
    Counted,
    NamedValues,
    Presence,
    of_displacement,
    of_gradient,
    of_length_gaps,
    of_outcome,
    of_responses,
    of_scales,
    on_device,
)
from lit_align.objectives.base import Objective
from lit_align.types import Outcome, PairBatch, PairLogProbs, PairTokens

CORRELATION = "lengths/margin_correlation"


class PairMetrics(Metric):
    """Means over pairs, or over responses, of everything in the glossary, weighted by ``PairBatch.weight``.

    Reads the ``Outcome`` and nothing else for rewards and margins, so what is reported is what was optimised.
    A number that the objective does not form (a margin for a plain likelihood, say) is absent, not zero; of unpaired
    rows the side that is there counts, and a comparison counts the pairs that have both.
    ``lengths/margin_correlation`` is Pearson's r between the reward margin and the length gap chosen − rejected.

    Args:
        objective: what is optimised; names the terms of ``loss/<term>`` and gives the slope of ``margin/saturated``.
            None reports neither.
        from_start: whether the reference is the policy before its first step; reports ``displacement/…`` if so.
        spread: also keep sums of squares, for ``errors``.
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor
    moments: Tensor
    squares: Tensor

    def __init__(self, objective: Objective | None = None, from_start: bool = False, spread: bool = False) -> None:
        super().__init__()
        self.objective = objective
        self.names = (*PAIR_METRICS, *(f"loss/{term}" for term in (objective.term_names if objective else ())))
        self.from_start = from_start
        self.quarters: tuple[float, ...] = ()
        """The lengths that divide the training responses into quarters, where they are known."""
        zeros = torch.zeros(len(self.names), dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("weights", zeros.clone(), dist_reduce_fx="sum")
        self.spread = spread
        self.errors: dict[str, tuple[float, float]] = {}
        """Name to its weight in pairs or responses and the standard error of its mean, as of the last ``compute``."""
        if spread:
            self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("moments", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, outcome: Outcome, logps: PairLogProbs, batch: PairBatch, grad_logps: PairTokens | None = None
    ) -> None:
        """Add the pairs of one batch.

        Args:
            outcome: what the objective made of them.
            logps: their log-probabilities.
            batch: the pairs.
            grad_logps: gradient of the weighted sum of the losses with respect to ``logps.policy``, where known.
        """
        present = Presence.of(logps)
        slope = None if self.objective is None else self.objective.slope(logps, outcome)
        values = {
            **of_outcome(outcome, present, slope),
            **of_responses(logps, batch, present),
            **of_scales(logps, present),
            **of_length_gaps(outcome, logps, present),
            **(of_displacement(logps, present) if self.from_start else {}),
            **({} if grad_logps is None else of_gradient(grad_logps, logps, batch, present, self.quarters)),
        }
        places = on_device(tuple(self.names.index(name) for name in values), torch.long, self.sums.device)
        value, weight = _stacked(values, batch.weight.double())
        self.sums = self.sums.index_add(0, places, (value * weight).sum((1, 2)))
        self.weights = self.weights.index_add(0, places, weight.sum((1, 2)))
        if self.spread:
            self.squares = self.squares.index_add(0, places, (value**2 * weight).sum((1, 2)))
        if "rewards/margins" in values:
            counted = batch.weight.double() * present.both
            margins, gaps = values["rewards/margins"].value.double(), values["lengths/gap"].value
            self.moments = self.moments + moments_of(margins, gaps, counted)

    def compute(self) -> dict[str, Tensor]:
        """Return name to mean, for the numbers that were counted."""
        counted = (self.weights > 0).tolist()
        means = (self.sums / self.weights).float()
        if self.spread:
            variance = (self.squares / self.weights - (self.sums / self.weights) ** 2).clamp_min(0)
            pairs = zip(self.names, self.weights.tolist(), (variance / self.weights).sqrt().tolist(), strict=True)
            self.errors = {name: (weight, error) for name, weight, error in pairs if weight > 0}
        named = {name: means[place] for place, name in enumerate(self.names) if counted[place]}
        if self.moments[0] > 0:
            named[CORRELATION] = correlation(self.moments).float()
        return named


def _stacked(values: NamedValues, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return values, zero where they count nothing, and weights: each [name, pair, side]."""
    parts = [_two_sided(counted) for counted in values.values()]
    counts = torch.stack([part.counts for part in parts])
    value = torch.stack([part.value.detach().double() for part in parts])
    counted = counts * weight.unsqueeze(-1)
    return torch.where(counted > 0, value, 0.0), counted


def _two_sided(counted: Counted) -> Counted:
    """Give a value per pair a second side, on which nothing counts."""
    value, counts = counted.value, counted.counts
    if value.dim() == 2 and value.shape[1] == 2:
        return counted
    value, counts = value.reshape(len(value), 1), counts.reshape(len(counts), 1)
    return Counted(torch.cat([value, value], 1), torch.cat([counts, torch.zeros_like(counts)], 1))


def moments_of(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Return the six sums that `correlation` is made of; what stands at weight 0 does not matter."""
    x, y = (torch.where(weight > 0, part, 0.0) for part in (x, y))
    return torch.stack([(weight * part).sum() for part in (torch.ones_like(x), x, y, x * x, y * y, x * y)])


def correlation(moments: Tensor) -> Tensor:
    """Return Pearson's correlation; 0 where one of the two is constant.

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> correlation(moments_of(x, -2 * x, torch.ones(3)))
    tensor(-1.)
    """
    count, x, y, xx, yy, xy = moments
    covariance = xy / count - (x / count) * (y / count)
    spread = (xx / count - (x / count) ** 2).clamp_min(0) * (yy / count - (y / count) ** 2).clamp_min(0)
    return torch.where(spread > 0, covariance / spread.sqrt(), torch.zeros_like(spread))
