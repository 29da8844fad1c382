"""The preference objective, which joins regularizer, averaging, divergence, refinement and contrast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from typing_extensions import override

from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import MARGIN, PROBABILITY, Needs, Objective, Scale, chosen_minus_rejected, refined
from lit_align.objectives.contrast import Contrast
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.refinement import NoRefinement, Refinement, offset_of
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.objectives.soft_labels import soft_labels, stated_margin, swapped
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores

COLUMNS = frozenset({MARGIN, PROBABILITY})
"""The columns that change the loss: a stated margin is an offset, a probable order is a mixture of two."""


@dataclass(frozen=True)
class PreferenceObjective(Objective):
    """``contrast(margin - offset)``, the margin being ``h(A[penalty])`` of the chosen side minus the rejected one.

    The five parts are independent of each other and any choice of them is an objective; the defaults of all but the
    contrast are neutral, so that ``PreferenceObjective(Logistic())`` is DPO. The presets are the choices that have
    been published.

    Where the rows say by how much a pair is won, that is added to the offset: ``margin / β``, because the column is in
    the unit of rewards. Where they say that a pair's order is only probable, its loss is p times the loss in that
    order plus 1 - p times the loss with the sides exchanged; for `Logistic` that is label smoothing by 1 - p.

    Args:
        contrast: from the refined margin to the loss; holds β.
        averaging: from the values of tokens to one number per response.
        refinement: the offset in nats that the margin has to exceed.
        regularizer: the penalty of each token, from the log-probabilities of policy and reference.
        divergence: from log-ratios to scores.
        requires: the columns that the data must have: ``margin``, ``preference_probability``. Data that lacks one is
            refused before training.

    Raises:
        ValueError: a required column is unknown, or it is called without what a part needs.

    >>> from lit_align.objectives import Logistic, Mean
    >>> from lit_align.objectives.examples import worked_pair
    >>> averaged = PreferenceObjective(Logistic(beta=2.0), averaging=Mean())
    >>> averaged(worked_pair()).loss  # -log σ(2 · 0.55)
    tensor([0.2873])
    """

    contrast: Contrast
    averaging: Averaging = Sum()
    refinement: Refinement = NoRefinement()
    regularizer: Regularizer = KL()
    divergence: Divergence = ReverseKL()
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names of the columns."""
        unknown = sorted(set(self.requires) - COLUMNS)
        if unknown:
            known = " or ".join(sorted(COLUMNS))
            raise ValueError(f"PreferenceObjective.requires names {', '.join(unknown)}; expected {known}")

    @property
    @override
    def needs(self) -> Needs:
        own = Needs(rejected=True, columns=COLUMNS, required_columns=frozenset(self.requires))
        return own | self.regularizer.needs | self.averaging.needs | self.refinement.needs

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        return Scale.of(self.contrast.beta, self.averaging.length_power, not self.contrast.beta_sets_slope)

    @property
    @override
    def prompted_length_power(self) -> float | None:
        return (self.averaging.length_power or 0.0) if self.needs.prompted else None

    def log_ratio(self, logps: PairLogProbs) -> PairScores:
        """Return the score of each response, in nats: the implicit reward without β."""
        penalty = self.regularizer(logps.policy, logps.reference)
        return self.divergence(self.averaging(penalty, logps.mask, logps.pair_seed))

    def margin(self, logps: PairLogProbs) -> Margin:
        """Return chosen minus rejected of each pair, in nats, before refinement."""
        return chosen_minus_rejected(self.log_ratio(logps))

    @soft_labels
    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        log_ratio_of = cache(self.log_ratio)  # a refinement may ask for the same record again
        log_ratio = log_ratio_of(logps)
        margin = chosen_minus_rejected(log_ratio)
        offset = offset_of(self.refinement, logps, log_ratio_of) + stated_margin(logps, self.contrast.beta, margin)
        prompted = logps.prompted if self.needs.prompted else None
        return Outcome(
            loss=self.contrast(margin - offset),
            rewards=(self.contrast.beta * log_ratio).detach(),
            margin=margin.detach(),
            offset=offset.detach(),
            prompted_margin=None if prompted is None else chosen_minus_rejected(log_ratio_of(prompted)).detach(),
        )

    @override
    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin:
        slope = self.contrast.slope(refined(outcome))
        if logps.preference_probability is not None:
            exchanged = self(replace(swapped(logps), preference_probability=None))
            probability = logps.preference_probability.to(slope.dtype)
            slope = probability * slope - (1 - probability) * self.contrast.slope(refined(exchanged))
        return slope.abs()
