"""Pair values are what the rows say of each pair in numbers: weight, margin, certainty, scores, and its source."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final, overload

import numpy as np
from numpy.typing import NDArray

from lit_align.types import PreferencePair, TokenizedPair

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairValues:
    """The numbers of the pairs of a split, at the same positions; NaN where a row has none.

    Args:
        source: number of the source of each pair.
        scores: score of each side, ``[pair, side]``.
        weight: how much each pair counts.
        margin: by how much chosen shall win.
        preference_probability: how sure the preference is.
    """

    source: NDArray[np.int32]
    scores: Values
    weight: Values
    margin: Values
    preference_probability: Values

    @classmethod
    def of(cls, pairs: Sequence[PreferencePair]) -> PairValues:
        """The numbers of some pairs."""
        none = (np.nan, np.nan)
        return cls(
            source=np.array([pair.source for pair in pairs], dtype=np.int32),
            scores=np.array([pair.scores or none for pair in pairs], dtype=np.float64).reshape(-1, 2),
            weight=np.array([pair.weight for pair in pairs], dtype=np.float64),
            margin=np.array([pair.margin for pair in pairs], dtype=np.float64),
            preference_probability=np.array([pair.preference_probability for pair in pairs], dtype=np.float64),
        )

    @property
    def present(self) -> frozenset[str]:
        """Which of ``margin`` and ``preference_probability`` any row has: an objective must honour them."""
        columns = {"margin": self.margin, "preference_probability": self.preference_probability}
        return frozenset(name for name, values in columns.items() if not np.isnan(values).all())

    @property
    def plain(self) -> bool:
        """Whether there is nothing to tell an objective: every pair counts once, and no other column is there."""
        return bool((self.weight == 1).all()) and not self.present

    @property
    def fingerprint(self) -> str:
        """Changes when a number that reaches a batch does."""
        used = np.stack([self.weight, self.margin, self.preference_probability])
        return hashlib.blake2b(np.nan_to_num(used, nan=-1.0).tobytes(), digest_size=16).hexdigest()

    @property
    def scores_disagree(self) -> int:
        """How many pairs have a higher score on the rejected side."""
        return int((self.scores[:, 0] < self.scores[:, 1]).sum())


@final
class ValuedPairs(Sequence[TokenizedPair]):
    """The pairs of a store with the numbers that an objective may use.

    Args:
        pairs: the ids.
        values: the numbers, at the same positions.
    """

    def __init__(self, pairs: Sequence[TokenizedPair], values: PairValues) -> None:
        self.pairs = pairs
        self.weight = values.weight
        self.margin = np.nan_to_num(values.margin, nan=0.0) if "margin" in values.present else None
        probability = values.preference_probability
        known = "preference_probability" in values.present
        self.probability = np.nan_to_num(probability, nan=1.0) if known else None

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, place: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TokenizedPair]: ...
    def __getitem__(self, place: int | slice) -> TokenizedPair | Sequence[TokenizedPair]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        return replace(
            self.pairs[place],
            weight=float(self.weight[place]),
            margin=None if self.margin is None else float(self.margin[place]),
            preference_probability=None if self.probability is None else float(self.probability[place]),
        )
