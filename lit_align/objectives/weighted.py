"""A weighted sum is an objective whose terms are objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from lit_align.objectives.base import PROBABILITY, Needs, Objective, Scale
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
    holds are those of the first term, so the term that compares responses stands first. Running numbers of a term are
    carried under its name, a slash and their own.

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
    def needs(self) -> Needs:
        """What any term needs; rows may be unpaired only if every term accepts them.

        Margins count if they do for any term, probabilities only if they do for every term: to another one the labels
        would be certain.
        """
        needs = [term.objective.needs for term in self.terms]
        joined = reduce(or_, needs)
        ignored = {PROBABILITY} - frozenset.intersection(*(each.columns for each in needs))
        return replace(joined, columns=joined.columns - ignored)

    @property
    def running(self) -> Mapping[str, float]:
        """Its terms', under their names."""
        numbers = {term.name: term.objective.running for term in self.terms}
        return {f"{term}/{name}": first for term, own in numbers.items() for name, first in own.items()}

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Each term's by itself."""
        after = {
            term.name: term.objective.advance(_of_term(running, term.name), _of_term(observed, term.name))
            for term in self.terms
        }
        return {f"{term}/{name}": value for term, own in after.items() for name, value in own.items()}

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Its terms', under their names."""
        return tuple(
            replace(scale, name=f"{term.name}/{scale.name}".rstrip("/"))
            for term in self.terms
            for scale in term.objective.scales
        )

    @property
    def term_names(self) -> tuple[str, ...]:
        """Its terms'."""
        return tuple(term.name for term in self.terms)

    def __call__(self, logps: PairLogProbs) -> Outcome:
        """See the base class."""
        if PROBABILITY not in self.needs.columns:
            logps = replace(logps, preference_probability=None)
        outcomes = {
            term.name: term.objective(replace(logps, running=_of_term(logps.running, term.name)))
            for term in self.terms
        }
        weighted = [term.weight * outcomes[term.name].loss for term in self.terms]
        observed = {
            f"{term}/{name}": value for term, outcome in outcomes.items() for name, value in outcome.observed.items()
        }
        return replace(
            outcomes[self.terms[0].name],
            loss=torch.stack(weighted).sum(0),
            terms={name: outcome.loss.detach() for name, outcome in outcomes.items()},
            observed=observed,
        )


def _of_term(numbers: Mapping[str, Tensor], term: str) -> Mapping[str, Tensor]:
    """The numbers of one term, under their own names."""
    prefix = f"{term}/"
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
