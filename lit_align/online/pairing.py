"""Pairings: which of the responses that a policy sampled make preference pairs, and how sure each pair is."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar, final

from typing_extensions import override

from lit_align.objectives.base import MARGIN, PROBABILITY, Part


class ResponsePairing(Part, ABC):
    """Which responses to one prompt are compared; the one with the higher score is the chosen one."""

    @abstractmethod
    def __call__(self, scores: Sequence[float], seed: int) -> list[tuple[int, int]]:
        """Return the places of both responses of each pair, the better one first; equal scores make no pair.

        Args:
            scores: of the responses to one prompt.
            seed: of random choices; it depends on the prompt alone, not on its batch.
        """


@final
@dataclass(frozen=True)
class BestAgainstWorst(ResponsePairing):
    """The response with the highest score against the one with the lowest; the first of several.

    >>> BestAgainstWorst()([0.5, 2.0, -1.0], seed=0)
    [(1, 2)]
    """

    @override
    def __call__(self, scores: Sequence[float], seed: int) -> list[tuple[int, int]]:
        places = range(len(scores))
        return _ordered(scores, [(max(places, key=scores.__getitem__), min(places, key=scores.__getitem__))])


@final
@dataclass(frozen=True)
class EveryPair(ResponsePairing):
    """All pairs of responses to a prompt.

    >>> EveryPair()([0.5, 2.0, -1.0], seed=0)
    [(1, 0), (0, 2), (1, 2)]
    """

    @override
    def __call__(self, scores: Sequence[float], seed: int) -> list[tuple[int, int]]:
        return _ordered(scores, list(combinations(range(len(scores)), 2)))


@final
@dataclass(frozen=True)
class RandomPairs(ResponsePairing):
    """Some of the pairs of responses to a prompt, chosen at random without replacement.

    Args:
        count: pairs of each prompt; all of them where there are no more.

    >>> len(RandomPairs(count=2)([0.5, 2.0, -1.0], seed=3))
    2
    """

    count: int = 1
    ranges: ClassVar[Mapping[str, str]] = {"count": "[1, inf)"}

    @override
    def __call__(self, scores: Sequence[float], seed: int) -> list[tuple[int, int]]:
        pairs = list(combinations(range(len(scores)), 2))
        chosen = sorted(random.Random(seed).sample(range(len(pairs)), min(self.count, len(pairs))))
        return _ordered(scores, [pairs[place] for place in chosen])


def against_opponent(scores: Sequence[float]) -> list[tuple[int, int]]:
    """Pair each of the policy's responses, which come first, with one of the opponent's, which are as many.

    >>> against_opponent([0.5, 2.0, 1.0, 1.0])
    [(2, 0), (1, 3)]
    """
    half = len(scores) // 2
    return _ordered(scores, [(place, half + place) for place in range(half)])


def _ordered(scores: Sequence[float], pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Put the better response of each pair first, and leave out those of equal scores."""
    ordered = [(first, second) if scores[first] > scores[second] else (second, first) for first, second in pairs]
    return [(better, worse) for better, worse in ordered if scores[better] > scores[worse]]


@final
@dataclass(frozen=True)
class SampledPair:
    """A pair of responses to one prompt.

    Args:
        chosen: place of the better response among all of the prompt.
        rejected: place of the other.
        margin: by how much the chosen one should win; None unless it is stated.
        preference_probability: how sure the preference is; None unless it is stated.
    """

    chosen: int
    rejected: int
    margin: float | None = None
    preference_probability: float | None = None


@dataclass(frozen=True)
class PairLabels:
    """What the scores of a pair say to the objective.

    Args:
        minimum_gap: pairs whose scores differ by less are left out, 0 or more; equal scores never make a pair.
        margin_scale: the pair's ``margin`` is this times the gap of its scores; None states no margin.
        probability_scale: the pair's ``preference_probability`` is σ of this times the gap of its scores or, of a
            judge that compares, of this times the log-odds of its judgement; None takes the order as sure.

    >>> PairLabels(probability_scale=1.0, margin_scale=0.5).pairs([(1, 0)], [0.0, 2.0])
    [SampledPair(chosen=1, rejected=0, margin=1.0, preference_probability=0.8807970779778823)]
    >>> PairLabels(minimum_gap=0.5).pairs([(1, 0), (1, 2)], [0.2, 0.5, 0.0])
    [SampledPair(chosen=1, rejected=2, margin=None, preference_probability=None)]
    """

    minimum_gap: float = 0.0
    margin_scale: float | None = None
    probability_scale: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minimum_gap) and self.minimum_gap >= 0):
            raise ValueError(f"PairLabels.minimum_gap is {self.minimum_gap}; expected a finite number, 0 or more")
        for name in ("margin_scale", "probability_scale"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"PairLabels.{name} is {value}; expected a finite number above 0, or null")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that pairs get, with the key that asks for each."""
        named = {MARGIN: "margin_scale", PROBABILITY: "probability_scale"}
        return {column: key for column, key in named.items() if getattr(self, key) is not None}

    def pairs(
        self, places: Sequence[tuple[int, int]], scores: Sequence[float], wins: Sequence[Sequence[float]] | None = None
    ) -> list[SampledPair]:
        """Return the pairs of one prompt whose gap is large enough, with their labels.

        Args:
            places: of both responses of each pair, the better one first.
            scores: of the responses.
            wins: how sure a judge is that a response is better than another, ``[response][response]``; None for
                scores that are no judgements of two.
        """
        pairs = []
        for chosen, rejected in places:
            gap = scores[chosen] - scores[rejected]
            if gap >= self.minimum_gap:
                odds = gap if wins is None else _log_odds(wins[chosen][rejected])
                margin = None if self.margin_scale is None else self.margin_scale * gap
                pairs.append(SampledPair(chosen, rejected, margin, self._probability(odds)))
        return pairs

    def _probability(self, odds: float) -> float | None:
        if self.probability_scale is None:
            return None
        scaled = self.probability_scale * odds
        return 1 / (1 + math.exp(-scaled)) if scaled > -700 else 0.0


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability)) if 0 < probability < 1 else math.inf * (probability - 0.5)
