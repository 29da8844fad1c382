"""Formats with any number of pairs per row: rankings of several responses, single responses, and prompts alone."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from typing_extensions import override

from lit_align.data.formats import fields
from lit_align.data.formats.base import Format, PairFormat, ParsedRow, RawRow
from lit_align.data.formats.conversations import split_responses
from lit_align.errors import DataError, check_range, kind, shown
from lit_align.types import PreferencePair, Text

PairingName: TypeAlias = Literal["all", "best_vs_rest", "random_one"]
Places: TypeAlias = tuple[int, int]
"""Positions of the chosen and the rejected response in a ranking."""

TIES = "pairs of responses whose scores are too close for a winner; skipped"
SAME = "pairs of identical responses; skipped"


class Pairing(ABC):
    """Interface for choosing pairs of a ranking."""

    @abstractmethod
    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        """Choose some of the possible pairs.

        Args:
            places: every pair with a winner, those of the best response first.
            row: the row.
        """


@final
@dataclass(frozen=True)
class AllPairs(Pairing):
    """Choose every pair with a winner: up to k(k − 1)/2 of k responses."""

    @override
    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        return list(places)


@final
@dataclass(frozen=True)
class BestVersusRest(Pairing):
    """Choose the best response against each of the others: up to k − 1 pairs."""

    @override
    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        return [pair for pair in places if pair[0] == places[0][0]]


@final
@dataclass(frozen=True)
class RandomPair(Pairing):
    """Choose one pair by a hash of seed and row, so that the choice does not depend on the other rows.

    Args:
        seed: seed of the choice.
    """

    seed: int = 0

    @override
    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        content = json.dumps([self.seed, row.columns["prompt"], row.columns["responses"]], default=str)
        digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return [places[int.from_bytes(digest, "big") % len(places)]] if places else []


@dataclass(frozen=True)
class Order:
    """The order of merit of k responses.

    ``choice`` takes precedence over ``scores``; without either, the first response is the best.

    Args:
        count: k.
        scores: score of each response, or None.
        choice: position of the response that was preferred to each other, or None.
        min_gap: smallest difference of two scores that makes a pair. Equal scores never make one, unless ``choice``
            decides and ``min_gap`` is 0.
    """

    count: int
    scores: tuple[float, ...] | None = None
    choice: int | None = None
    min_gap: float = 0.0

    @classmethod
    def of(cls, row: RawRow, count: int, min_gap: float) -> Order:
        """Read the order from the ``scores`` and ``choice`` of a row.

        Raises:
            DataError: the scores or the choice do not fit the responses.
        """
        return cls(count, _scores(row, count), _choice(row, count), min_gap)

    def places(self) -> list[Places]:
        """Return every pair with a winner, in the order of the winners.

        >>> Order(3, scores=(1.0, 3.0, 1.0)).places()
        [(1, 0), (1, 2)]
        """
        return [pair for pair in self._compared() if self._has_winner(*pair)]

    @property
    def ties(self) -> int:
        """Number of pairs without a winner."""
        return sum(not self._has_winner(*pair) for pair in self._compared())

    def _compared(self) -> list[Places]:
        """Return every pair that the row compares, the better response first, in the order of the winners."""
        if self.choice is not None:
            return [(self.choice, other) for other in range(self.count) if other != self.choice]
        scores = self.scores
        order = range(self.count) if scores is None else sorted(range(self.count), key=lambda i: -scores[i])
        return list(itertools.combinations(order, 2))

    def _has_winner(self, better: int, worse: int) -> bool:
        if self.scores is None or (self.choice is not None and not self.min_gap):
            return True
        gap = self.scores[better] - self.scores[worse]
        return gap > 0 and gap >= self.min_gap


def _scores(row: RawRow, count: int) -> tuple[float, ...] | None:
    values = row.columns.get("scores")
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        actual = f"{len(values)} scores" if isinstance(values, list) else kind(values)
        raise DataError(row.where, f"found {actual}; expected a score for each of the {count} responses", "scores")
    return tuple(fields.number(row.where, f"scores[{index}]", value) for index, value in enumerate(values))


def _choice(row: RawRow, count: int) -> int | None:
    value = row.columns.get("choice")
    if value is None:
        return None
    choice = fields.number(row.where, "choice", value)
    if choice not in range(count):
        raise DataError(
            row.where, f"found {shown(value, 40)}; expected the number of a response, 0 to {count - 1}", "choice"
        )
    return int(choice)


@final
@dataclass(frozen=True)
class Ranking(Format):
    """A ``prompt`` and a list of ``responses``, texts or messages, ordered from best to worst by default.

    A column ``scores`` (higher is better) gives another order; ``choice`` is the index, from 0, of the response that
    was preferred to the others. Responses with equal scores never make a pair.

    Args:
        pairing: which pairs are made of a row.
        min_gap: smallest difference of two scores that makes a pair.

    >>> row = RawRow({"prompt": "2 + 2?", "responses": ["5", "4", "3"], "scores": [1, 2, 1]}, "sums.jsonl:1")
    >>> [(pair.chosen, pair.rejected, pair.scores) for pair in Ranking()(row).pairs]
    [('4', '5', (2.0, 1.0)), ('4', '3', (2.0, 1.0))]
    """

    columns: ClassVar[Sequence[str]] = ("prompt", "responses")
    pairing: Pairing = AllPairs()
    min_gap: float = 0.0

    @classmethod
    def from_settings(cls, pairing: PairingName, min_gap: float, seed: int) -> Ranking:
        """Build the format from ``data.pairing`` and ``data.min_gap``.

        Raises:
            ValueError: ``min_gap`` is negative.
        """
        check_range("data.min_gap", min_gap, 0)
        pairings = {"all": AllPairs(), "best_vs_rest": BestVersusRest(), "random_one": RandomPair(seed)}
        return cls(pairings[pairing], min_gap)

    @override
    def __call__(self, row: RawRow) -> ParsedRow:
        values = row.columns["responses"]
        if not isinstance(values, list) or len(values) < 2:
            actual = f"{len(values)} responses" if isinstance(values, list) else kind(values)
            raise DataError(row.where, f"found {actual}; expected a list of two or more", "responses")
        prompt, responses = split_responses(row, "responses", values)
        order = Order.of(row, len(responses), self.min_gap)
        places = self.pairing(order.places(), row)
        unequal = [(a, b) for a, b in places if responses[a] != responses[b]]
        pairs = tuple(self._pair(row, prompt, responses, order, pair) for pair in unequal)
        return ParsedRow(pairs, +Counter({TIES: order.ties, SAME: len(places) - len(unequal)}))

    @staticmethod
    def _pair(row: RawRow, prompt: Text, responses: list[Text], order: Order, places: Places) -> PreferencePair:
        chosen, rejected = places
        return PreferencePair(
            prompt=prompt,
            chosen=responses[chosen],
            rejected=responses[rejected],
            where=row.where,
            extra=fields.extra(row),
            tools=fields.tools(row),
            scores=None if order.scores is None else (order.scores[chosen], order.scores[rejected]),
        )


@final
@dataclass(frozen=True)
class Unpaired(PairFormat):
    """A ``prompt``, a ``completion`` and its ``label``: true for the chosen side, false for the rejected side.

    >>> row = RawRow({"prompt": "2 + 2?", "completion": "5", "label": False}, "sums.jsonl:1")
    >>> pair = Unpaired().pair(row)
    >>> pair.chosen, pair.rejected
    (None, '5')
    """

    columns: ClassVar[Sequence[str]] = ("prompt", "completion", "label")

    @override
    def pair(self, row: RawRow) -> PreferencePair:
        prompt, (response,) = split_responses(row, "completion", [row.columns["completion"]])
        chosen, rejected = (response, None) if fields.boolean(row, "label") else (None, response)
        return PreferencePair(prompt, chosen, rejected, row.where, fields.extra(row), fields.tools(row))


@final
@dataclass(frozen=True)
class Prompts(PairFormat):
    """A ``prompt`` alone, text or messages, for training on the policy's own responses.

    This format is never detected automatically: a row with misspelt response columns would look the same.

    >>> pair = Prompts().pair(RawRow({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "sums.jsonl:1"))
    >>> pair.prompt, pair.chosen, pair.rejected
    ('2 + 2?', None, None)
    """

    columns: ClassVar[Sequence[str]] = ("prompt",)

    @override
    def pair(self, row: RawRow) -> PreferencePair:
        is_text = isinstance(row.columns["prompt"], str)
        prompt = fields.text(row, "prompt") if is_text else fields.messages(row, "prompt")
        return PreferencePair(prompt, None, None, row.where, fields.extra(row), fields.tools(row))
