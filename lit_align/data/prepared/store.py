"""A store holds tokenized pairs as Arrow records, in memory or in a file that is mapped into it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_align.data.prepared.arrow import NO_END, PARTS, Arrow, counts, numbers, plain, token_records
from lit_align.types import TokenizedPair, TokenizedResponse

_ODD = np.uint64(0x9E3779B97F4A7C15)


@final
@dataclass(frozen=True, eq=False)
class PairStore(Sequence[TokenizedPair]):
    """The pairs of a split, each at its position; four bytes a token.

    What is asked of all pairs at once is a column of its own, so that their ids stay on disk.

    Args:
        table: the records.

    >>> pair = TokenizedPair([1, 2], TokenizedResponse([3], [True]), TokenizedResponse([4, 5], [True, True]))
    >>> store = PairStore.of([pair, pair])
    >>> len(store), store[1].rejected.ids, store.lengths.tolist()
    (2, [4, 5], [[1, 2], [1, 2]])
    """

    table: Arrow

    @classmethod
    def of(cls, pairs: Sequence[TokenizedPair]) -> PairStore:
        """A store of these pairs, in memory."""
        return cls(pa.Table.from_batches([token_records(pairs)]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | Sequence[TokenizedPair]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return TokenizedPair(
            prompt=self._list("prompt", place) or [],
            chosen=self._response("chosen", place, self.truncated[place, 0]),
            rejected=self._response("rejected", place, self.truncated[place, 1]),
            prompted=self._list("prompted", place),
            index=place,
        )

    def _response(self, side: str, place: int, truncated: np.bool_) -> TokenizedResponse:
        ids = self._list(side, place) or []
        scored = self._list(f"{side}_scored", place)
        return TokenizedResponse(
            ids, [True] * len(ids) if scored is None else list(map(bool, scored)), bool(truncated)
        )

    def _list(self, name: str, place: int) -> list[int] | None:
        values = self.table.column(name)[place].values
        return None if values is None else plain(values).tolist()

    @property
    def part_lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt, chosen, rejected and prompted prompt of each pair."""
        return np.stack([counts(self.table, part) for part in PARTS], axis=1)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Scored tokens of each response: chosen, rejected."""
        return numbers(self.table, "scored_tokens").astype(np.int64)

    @cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each response was cut: chosen, rejected."""
        return numbers(self.table, "truncated").astype(np.bool_)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Tokens of the longest sequence of each pair: what it costs in a batch."""
        prompt, chosen, rejected, prompted = self.part_lengths.T
        widths: NDArray[np.int64] = np.maximum(prompt, prompted) + np.maximum(chosen, rejected)
        return widths

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """The last scored tokens of the responses that were not cut."""
        return frozenset(np.unique(numbers(self.table, "last")).tolist()) - {NO_END}

    @cached_property
    def ended(self) -> NDArray[np.bool_]:
        """Whether a response of each pair is there as a whole, so that it shows how it ends."""
        there: NDArray[np.bool_] = (numbers(self.table, "last") != NO_END).any(axis=1)
        return there

    def hashes(self, parts: Iterable[str]) -> NDArray[np.uint64]:
        """A number for each pair that says whether the named parts, in the order they are named, are the same.

        Args:
            parts: of ``prompt``, ``chosen``, ``rejected``, ``prompted``.
        """
        digests = numbers(self.table, "digests")
        mixed = np.zeros(len(self), dtype=np.uint64)
        for part in parts:
            mixed = (mixed ^ digests[:, PARTS.index(part)]) * _ODD
            mixed ^= mixed >> np.uint64(32)
        return mixed

    @cached_property
    def fingerprint(self) -> str:
        """Changes when any token of any pair does, or their order."""
        digest = hashlib.sha256(np.ascontiguousarray(numbers(self.table, "digests")).data)
        digest.update(np.ascontiguousarray(self.truncated).data)
        return digest.hexdigest()
