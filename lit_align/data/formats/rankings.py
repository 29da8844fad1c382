"""A ranking is a prompt with several responses in an order of merit; a pairing says which pairs are made of it."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, final

from lit_align.data.formats import fields as cells
from lit_align.data.formats.base import Format, PairFormat, Reading
from lit_align.data.formats.conversations import answers
from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, kind, shown
from lit_align.types import PreferencePair, Text

PairingName: TypeAlias = Literal["all", "best_vs_rest", "random_one"]
Places: TypeAlias = tuple[int, int]
"""Which response is chosen, and which rejected."""


class Pairing(ABC):
    """Which pairs are made of the responses of a row."""

    @abstractmethod
    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        """Some of the pairs that could be made.

        Args:
            places: every pair with a winner, the best response's first.
            row: the row.
        """


@final
@dataclass(frozen=True)
class AllPairs(Pairing):
    """Every pair with a winner: up to k(k − 1)/2 of k responses."""

    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        """See the base class."""
        return list(places)


@final
@dataclass(frozen=True)
class BestVersusRest(Pairing):
    """The best response against each of the others: up to k − 1 pairs."""

    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        """See the base class."""
        return [pair for pair in places if pair[0] == places[0][0]]


@final
@dataclass(frozen=True)
class RandomPair(Pairing):
    """One of the pairs, drawn by a hash of seed and row: other rows, or their order, change nothing.

    Args:
        seed: another seed draws another one.
    """

    seed: int = 0

    def __call__(self, places: Sequence[Places], row: RawRow) -> list[Places]:
        """See the base class."""
        said = json.dumps([self.seed, row.columns["prompt"], row.columns["responses"]], default=str)
        digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return [places[int.from_bytes(digest, "big") % len(places)]] if places else []


@dataclass(frozen=True)
class Order:
    """The order of merit of k responses.

    Args:
        count: k.
        scores: what each was scored with; None where nobody scored them.
        choice: the one that was preferred to each other, if the row only says that.
        min_gap: by how much the winner's score must be the higher one to make a pair; equal scores never do, unless a
            choice decides and no gap is asked for.
    """

    count: int
    scores: tuple[float, ...] | None = None
    choice: int | None = None
    min_gap: float = 0.0

    @classmethod
    def of(cls, row: RawRow, count: int, min_gap: float) -> Order:
        """What ``choice`` says; otherwise what ``scores`` say; otherwise the first response is the best.

        Raises:
            DataError: the scores, or the choice, do not fit the responses.
        """
        return cls(count, _scores(row, count), _choice(row, count), min_gap)

    def places(self) -> list[Places]:
        """Every pair with a winner, in the order of the winners.

        >>> Order(3, scores=(1.0, 3.0, 1.0)).places()
        [(1, 0), (1, 2)]
        """
        return [pair for pair in self._decided() if self._apart(*pair)]

    @property
    def ties(self) -> int:
        """How many pairs have no winner."""
        return sum(not self._apart(*pair) for pair in self._decided())

    def _decided(self) -> list[Places]:
        """Every pair that the row says something about, the better one first, in the order of the winners."""
        if self.choice is not None:
            return [(self.choice, other) for other in range(self.count) if other != self.choice]
        return list(itertools.combinations(self._best_first(), 2))

    def _best_first(self) -> list[int]:
        scores = self.scores
        return list(range(self.count)) if scores is None else sorted(range(self.count), key=lambda i: -scores[i])

    def _apart(self, better: int, worse: int) -> bool:
        if self.scores is None or (self.choice is not None and not self.min_gap):
            return True
        gap = self.scores[better] - self.scores[worse]
        return gap > 0 and gap >= self.min_gap

    def counts(self) -> Mapping[str, int]:
        """The remarks for the report."""
        return Counter({TIES: self.ties})


TIES = "pairs of responses without a winner, their scores too close; not made"


def _scores(row: RawRow, count: int) -> tuple[float, ...] | None:
    values = row.columns.get("scores")
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} scores" if isinstance(values, list) else kind(values)
        raise DataError(row.where, f"found {found}; expected a score for each of the {count} responses", "scores")
    return tuple(cells.number(row.where, f"scores[{place}]", value) for place, value in enumerate(values))


def _choice(row: RawRow, count: int) -> int | None:
    value = row.columns.get("choice")
    if value is None:
        return None
    found = cells.number(row.where, "choice", value)
    if found not in range(count):
        raise DataError(
            row.where, f"found {shown(value, 40)}; expected the number of a response, 0 to {count - 1}", "choice"
        )
    return int(found)


SAME = "pairs of responses that are the same; not made"


@final
@dataclass(frozen=True)
class Ranking(Format):
    """A ``prompt`` and a list of ``responses``, texts or messages, the best one first unless the row says otherwise.

    ``scores`` (higher is better) put them in another order, and ``choice`` is the number of the one that was preferred
    to the others, counted from 0. Responses with equal scores never make a pair.

    Args:
        pairing: which pairs are made of a row.
        min_gap: by how much two scores must differ at least to make a pair.

    >>> row = RawRow({"prompt": "2 + 2?", "responses": ["5", "4", "3"], "scores": [1, 2, 1]}, "sums.jsonl:1")
    >>> [(pair.chosen, pair.rejected, pair.scores) for pair in Ranking()(row).pairs]
    [('4', '5', (2.0, 1.0)), ('4', '3', (2.0, 1.0))]
    """

    columns: ClassVar[Sequence[str]] = ("prompt", "responses")
    pairing: Pairing = AllPairs()
    min_gap: float = 0.0

    def __call__(self, row: RawRow) -> Reading:
        """See the base class."""
        values = row.columns["responses"]
        if not isinstance(values, list) or len(values) < 2:
            found = f"{len(values)} responses" if isinstance(values, list) else kind(values)
            raise DataError(row.where, f"found {found}; expected a list of two or more", "responses")
        prompt, responses = answers(row, "responses", values)
        order = Order.of(row, len(responses), self.min_gap)
        places = self.pairing(order.places(), row)
        unequal = [(a, b) for a, b in places if responses[a] != responses[b]]
        pairs = tuple(self._pair(row, prompt, responses, order, each) for each in unequal)
        return Reading(pairs, Counter(order.counts()) + Counter({SAME: len(places) - len(unequal)}))

    @staticmethod
    def _pair(row: RawRow, prompt: Text, responses: list[Text], order: Order, places: Places) -> PreferencePair:
        scores = order.scores
        return PreferencePair(
            prompt=prompt,
            chosen=responses[places[0]],
            rejected=responses[places[1]],
            where=row.where,
            extra=cells.extra(row),
            tools=cells.tools(row),
            scores=None if scores is None else (scores[places[0]], scores[places[1]]),
        )


@final
@dataclass(frozen=True)
class Unpaired(PairFormat):
    """A ``prompt``, one ``completion`` and its ``label``: true makes it the chosen side, false the rejected one.

    >>> row = RawRow({"prompt": "2 + 2?", "completion": "5", "label": False}, "sums.jsonl:1")
    >>> pair = Unpaired().pair(row)
    >>> pair.chosen, pair.rejected
    (None, '5')
    """

    columns: ClassVar[Sequence[str]] = ("prompt", "completion", "label")

    def pair(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        prompt, (response,) = answers(row, "completion", [row.columns["completion"]])
        chosen, rejected = (response, None) if cells.truth(row, "label") else (None, response)
        return PreferencePair(prompt, chosen, rejected, row.where, cells.extra(row), cells.tools(row))


@final
@dataclass(frozen=True)
class Prompts(PairFormat):
    """A ``prompt`` alone, text or messages, for training on a policy's own responses; what else the row has is left.

    Never taken without being asked for: a row whose responses have misspelt names looks the same.

    >>> pair = Prompts().pair(RawRow({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}, "sums.jsonl:1"))
    >>> pair.prompt, pair.chosen, pair.rejected
    ('2 + 2?', None, None)
    """

    columns: ClassVar[Sequence[str]] = ("prompt",)

    def pair(self, row: RawRow) -> PreferencePair:
        """See the base class."""
        prompt = cells.text(row, "prompt") if isinstance(row.columns["prompt"], str) else cells.messages(row, "prompt")
        return PreferencePair(prompt, None, None, row.where, cells.extra(row), cells.tools(row))
