"""The joint: regularizer, averaging, divergence, refinement and contrast, put together once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import MARGIN, PROBABILITY, Needs, Objective, Scale
from lit_align.objectives.contrast import Contrast
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.labels import (
    Scores,
    constant,
    expected_loss,
    slope_of,
    swapped,
    swapped_scores,
    with_stated_margin,
)
from lit_align.objectives.refinement import NoRefinement, Refinement, offset_of
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores

COLUMNS = frozenset({MARGIN, PROBABILITY})
"""The columns that change the loss: a stated margin is an offset, a probable order is a mixture of two."""


@dataclass(frozen=True)
class PreferenceObjective(Objective):
    """``contrast(margin - offset)``, the margin being ``h(A[charge])`` of the chosen side minus the rejected one.

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
        regularizer: the charge per token, from the log-probabilities of policy and reference.
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
    def needs(self) -> Needs:
        """What the parts need, and both sides."""
        own = Needs(rejected=True, columns=COLUMNS, required_columns=frozenset(self.requires))
        return own | self.regularizer.needs | self.averaging.needs | self.refinement.needs

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The contrast's β over the averaging's length."""
        power = self.averaging.length_power
        return (Scale("", self.contrast.beta, power),) if self.contrast.beta_sets_slope and power is not None else ()

    def log_ratio(self, logps: PairLogProbs) -> PairScores:
        """The score of each response, in nats: the implicit reward without β."""
        charge = self.regularizer(logps.policy, logps.reference)
        return self.divergence(self.averaging(charge, logps.mask, logps.draw))

    def margin(self, logps: PairLogProbs) -> Margin:
        """Chosen minus rejected, in nats, before refinement."""
        return _chosen_minus_rejected(self.log_ratio(logps))

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        log_ratio_of = cache(self.log_ratio)  # a refinement may ask for one that is also reported
        log_ratio = log_ratio_of(logps)
        margin = _chosen_minus_rejected(log_ratio)
        offset = self._offset(logps, log_ratio_of)
        probability = logps.preference_probability
        exchanged = offset if probability is None else self._offset(swapped(logps), swapped_scores(log_ratio_of))
        prompted = logps.prompted if self.needs.prompted else None
        return Outcome(
            loss=self._loss(margin, offset, exchanged, probability),
            rewards=(self.contrast.beta * log_ratio).detach(),
            margin=margin.detach(),
            offset=offset.detach(),
            prompted_margin=None if prompted is None else _chosen_minus_rejected(log_ratio_of(prompted)).detach(),
            slope=self._slope(margin, offset, exchanged, probability),
        )

    def _offset(self, logps: PairLogProbs, log_ratio_of: Scores) -> Margin:
        return with_stated_margin(offset_of(self.refinement, logps, log_ratio_of), logps, self.contrast.beta)

    def _loss(self, margin: Margin, offset: Margin, exchanged: Margin, probability: Margin | None) -> Margin:
        """``exchanged`` is the offset of the pair with its sides exchanged."""
        return expected_loss(probability, self.contrast(margin - offset), lambda: self.contrast(-margin - exchanged))

    def _slope(self, margin: Margin, offset: Margin, exchanged: Margin, probability: Margin | None) -> Margin:
        offset, exchanged = constant(offset), constant(exchanged)
        probability = None if probability is None else constant(probability)
        return slope_of(lambda leaf: self._loss(leaf, offset, exchanged, probability), margin)


def _chosen_minus_rejected(log_ratio: PairScores) -> Margin:
    return log_ratio[:, 0] - log_ratio[:, 1]
