"""Objectives that are made of other objectives: weighted sums, and pairs that do not all count the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.base import PROBABILITY, Needs, Objective, Part, Scale, check_field
from lit_align.objectives.papers import WPO, Paper
from lit_align.types import Margin, Outcome, PairLogProbs

Number = TypeVar("Number")


class Combined(Objective):
    """An objective that is made of others, whose states and scales it carries under their names and a slash."""

    @property
    @abstractmethod
    def objectives(self) -> Mapping[str, Objective]:
        """The objectives by name; an empty name adds nothing to the names of what is carried."""

    @property
    @override
    def initial_state(self) -> Mapping[str, float]:
        return _joined({name: part.initial_state for name, part in self.objectives.items()})

    @property
    @override
    def term_names(self) -> tuple[str, ...]:
        named = [[name] if name else part.term_names for name, part in self.objectives.items()]
        return tuple(name for names in named for name in names)

    @property
    @override
    def prompted_length_power(self) -> float | None:
        powers = (part.prompted_length_power for part in self.objectives.values())
        return next((power for power in powers if power is not None), None)

    @override
    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _joined(
            {
                name: part.advance_state(_of_term(state, name), _of_term(observed, name))
                for name, part in self.objectives.items()
            }
        )

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        scales = [(name, scale) for name, part in self.objectives.items() for scale in part.scales]
        return tuple(replace(scale, name=f"{name}/{scale.name}".strip("/")) for name, scale in scales)


@dataclass(frozen=True)
class Term:
    """One term of a sum.

    Args:
        name: what the term is reported under; letters, digits and underscores.
        objective: gives the term's loss.
        weight: what the loss is multiplied with, 0 or more.

    Raises:
        ValueError: the name is no identifier or the weight is out of range.
    """

    name: str
    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check name and range."""
        if not self.name.isidentifier():
            raise ValueError(f"Term.name is {self.name!r}; expected letters, digits and underscores")
        check_field(self, "weight", "[0, inf)")


@dataclass(frozen=True)
class WeightedSum(Combined):
    """``Σ_i w_i loss_i``: any objectives at once, on the same log-probabilities.

    The loss of each term is reported under its name, before its weight. Rewards, margin and what else an outcome
    holds are those of the first term, so the term that compares responses stands first. A stated margin counts if it
    does for any term, a preference probability only if it does for every term: another term would take it for 1.

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
    @override
    def objectives(self) -> Mapping[str, Objective]:
        return {term.name: term.objective for term in self.terms}

    @property
    @override
    def needs(self) -> Needs:
        needs = [term.objective.needs for term in self.terms]
        ignored = {PROBABILITY} - frozenset.intersection(*(part.columns for part in needs))
        joined = reduce(or_, needs)
        return replace(joined, columns=joined.columns - ignored)

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        outcomes = {term.name: term.objective(self._seen_by(term, logps)) for term in self.terms}
        weighted = [term.weight * outcomes[term.name].loss for term in self.terms]
        return replace(
            outcomes[self.terms[0].name],
            loss=torch.stack(weighted).sum(0),
            terms={name: outcome.loss.detach() for name, outcome in outcomes.items()},
            observed=_joined({name: outcome.observed for name, outcome in outcomes.items()}),
        )

    @override
    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin | None:
        first = self.terms[0]
        return first.objective.slope(self._seen_by(first, logps), outcome)

    def _seen_by(self, term: Term, logps: PairLogProbs) -> PairLogProbs:
        probability = logps.preference_probability if PROBABILITY in self.needs.columns else None
        return replace(logps, state=_of_term(logps.state, term.name), preference_probability=probability)


class Weighting(Part, ABC):
    """How much the loss of each pair counts; `Reweighted` multiplies it. No gradient passes through a weight."""

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What the weighting needs; the rejected side unless a subclass overrides it."""
        return Needs(rejected=True, unpaired=True)

    @abstractmethod
    def __call__(self, logps: PairLogProbs) -> Margin:
        """Return the weight of each pair, 0 or more, without gradient.

        Args:
            logps: log-probabilities of the batch.
        """


@dataclass(frozen=True)
class OnPolicy(Weighting):
    """``min(1, w_w w_l)`` with ``w = exp(mean_t [lp_t - log Σ_v π(v)²])``: what the policy would write itself counts.

    Training on responses of another model is off-policy; weights of the policy's own likelihood make up for that. The
    collision probability Σ π² is what a token drawn from the policy has on average, so that a response from the
    policy weighs about 1, whether it is sure of itself or not. An absent side counts as 1.

    Paper: WPO, Zhou et al. 2024, arXiv:2406.11827, with sampled alignment, Eq. 2; the weight is cut at 1 as TRL's
    first ``use_weighting`` did, which follows the authors' code; TRL 1.16 does not cut it.

    Raises:
        ValueError: on a batch without ``collision``.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> OnPolicy()(replace(pair, collision=pair.mask * -1.25))  # e^(-2 + 1.25 - 1.5 + 1.25)
    tensor([0.3679])
    """

    source: ClassVar[Paper | None] = WPO
    needs: ClassVar[Needs] = Needs(rejected=True, collision=True, unpaired=True)

    @override
    def __call__(self, logps: PairLogProbs) -> Margin:
        if logps.collision is None:
            raise ValueError(
                "OnPolicy compares each token with the policy's collision probability, but PairLogProbs.collision "
                "is None; expected log Σ π² of each token, or no weighting"
            )
        aligned = torch.where(logps.mask, logps.policy.detach() - logps.collision.detach(), 0.0)
        mean = aligned.sum(-1, dtype=torch.float64) / logps.mask.sum(-1).clamp(min=1)
        return mean.sum(-1).clamp(max=0.0).exp().to(logps.policy.dtype)


@dataclass(frozen=True)
class Reweighted(Combined):
    """``w(pair) loss(pair)``: any objective, each pair times its weight; rewards and margins are the objective's own.

    Args:
        objective: gives the loss.
        weighting: gives the weight.

    >>> from lit_align.objectives import OnPolicy, dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> Reweighted(dpo(), OnPolicy())(replace(pair, collision=pair.mask * -1.25)).loss  # e^-1 · 0.4032
    tensor([0.1483])
    """

    objective: Objective
    weighting: Weighting

    @property
    @override
    def objectives(self) -> Mapping[str, Objective]:
        return {"": self.objective}

    @property
    @override
    def needs(self) -> Needs:
        return self.objective.needs | self.weighting.needs

    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        outcome, weight = self.objective(logps), self.weighting(logps).detach()
        terms = {name: weight * loss for name, loss in outcome.terms.items()}
        return replace(outcome, loss=weight * outcome.loss, terms=terms)

    @override
    def slope(self, logps: PairLogProbs, outcome: Outcome) -> Margin | None:
        slope = self.objective.slope(logps, outcome)
        return None if slope is None else self.weighting(logps).detach() * slope


def _joined(numbers: Mapping[str, Mapping[str, Number]]) -> dict[str, Number]:
    """Put the term's name and a slash before the names of its numbers."""
    return {f"{term}/{name}".strip("/"): number for term, own in numbers.items() for name, number in own.items()}


def _of_term(numbers: Mapping[str, Tensor], term: str) -> Mapping[str, Tensor]:
    """Return the numbers of one term, under their own names."""
    prefix = f"{term}/" if term else ""
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
