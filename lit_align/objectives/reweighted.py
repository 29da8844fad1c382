"""A reweighted objective is an objective whose pairs do not all count the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from lit_align.objectives.base import Needs, Objective, Scale
from lit_align.objectives.weighting import Weighting
from lit_align.types import Outcome, PairLogProbs


@dataclass(frozen=True)
class Reweighted(Objective):
    """``w(pair) loss(pair)``: any objective, each pair times what the weighting says of it.

    The slope and the losses of terms are multiplied as the loss is; rewards and margins are the objective's own.

    Args:
        objective: gives the loss, and answers for what it needs.
        weighting: gives the weight.

    >>> from dataclasses import replace
    >>> from lit_align.objectives import OnPolicy, dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> likely = replace(pair, collision=pair.mask * -1.25)
    >>> Reweighted(dpo(), OnPolicy())(likely).loss  # e^-1 · 0.4032
    tensor([0.1483])
    """

    objective: Objective
    weighting: Weighting

    @property
    def needs(self) -> Needs:
        """What the objective or the weighting needs."""
        return self.objective.needs | self.weighting.needs

    @property
    def running(self) -> Mapping[str, float]:
        """What the objective carries."""
        return self.objective.running

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the objective says."""
        return self.objective.advance(running, observed)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """The objective's."""
        return self.objective.scales

    @property
    def term_names(self) -> tuple[str, ...]:
        """The objective's."""
        return self.objective.term_names

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        outcome, weight = self.objective(logps), self.weighting(logps).detach()
        return replace(
            outcome,
            loss=weight * outcome.loss,
            slope=None if outcome.slope is None else weight * outcome.slope,
            terms={name: weight * loss for name, loss in outcome.terms.items()},
        )
