"""A weighted sum is an objective whose terms are objectives."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lit_align.objectives.objective import Objective
from lit_align.objectives.ranges import check_range
from lit_align.types import Outcome, PairLogProbs


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Args:
        name: what the term is reported under; letters, digits and underscores.
        objective: gives the term's loss.
        weight: what the loss is multiplied with, 0 or more.

    Raises:
        ValueError: the name or the weight is none.
    """

    name: str
    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check name and range."""
        if not self.name.isidentifier():
            raise ValueError(f"Term.name is {self.name!r}; expected letters, digits and underscores")
        check_range(self, "weight", "[0, inf)")


@dataclass(frozen=True)
class WeightedSum(Objective):
    """``Σ_i w_i loss_i``: any objectives at once, on the same log-probabilities.

    The loss of each term is reported under its name, before its weight. Rewards, margin and what else an outcome
    holds are those of the first term, so the term that compares responses stands first.

    Args:
        terms: the terms, of distinct names; at least one.

    Raises:
        ValueError: there is no term, or two have the same name.

    >>> from lit_align.objectives import SFT, dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> both = WeightedSum((Term("preference", dpo(beta=0.1)), Term("likelihood", SFT(), 0.5)))
    >>> outcome = both(worked_pair())
    >>> outcome.loss  # 0.4032 + 0.5 · 2
    tensor([1.4032])
    >>> dict(outcome.terms)
    {'preference': tensor([0.4032]), 'likelihood': tensor([2.])}
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Check the names."""
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"WeightedSum.terms are named {names}; expected one or more distinct names")

    @property
    def needs_reference(self) -> bool:
        """True if any term needs it."""
        return any(term.objective.needs_reference for term in self.terms)

    @property
    def needs_prompted(self) -> bool:
        """True if any term needs it."""
        return any(term.objective.needs_prompted for term in self.terms)

    @property
    def needs_rejected(self) -> bool:
        """True if any term needs it."""
        return any(term.objective.needs_rejected for term in self.terms)

    @property
    def accepts_unpaired(self) -> bool:
        """True if every term does."""
        return all(term.objective.accepts_unpaired for term in self.terms)

    @property
    def honours(self) -> frozenset[str]:
        """What any term honours."""
        return frozenset().union(*(term.objective.honours for term in self.terms))

    @property
    def term_names(self) -> tuple[str, ...]:
        """Its terms'."""
        return tuple(term.name for term in self.terms)

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        outcomes = [term.objective(logps) for term in self.terms]
        weighted = [term.weight * outcome.loss for term, outcome in zip(self.terms, outcomes, strict=True)]
        losses = {term.name: outcome.loss.detach() for term, outcome in zip(self.terms, outcomes, strict=True)}
        return replace(outcomes[0], loss=torch.stack(weighted).sum(0), terms=losses)
