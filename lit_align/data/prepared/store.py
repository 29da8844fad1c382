"""Sequences over the Arrow records of a split: its pairs as token ids, and as text."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from lit_align.data.prepared.arrow import (
    NO_END,
    PAIR_PARTS,
    Arrow,
    PairValues,
    as_array,
    list_lengths,
    numbers,
    token_records,
)
from lit_align.types import Message, PreferencePair, Text, TokenizedPair, TokenizedResponse

Pair = TypeVar("Pair")
_ODD = np.uint64(0x9E3779B97F4A7C15)


class _Records(Sequence[Pair]):
    """Base class of a sequence whose items are built from Arrow records on access."""

    table: Arrow

    def _item(self, index: int) -> Pair:
        raise NotImplementedError

    @override
    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    @override
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self._item(row) for row in range(*index.indices(len(self)))]
        return self._item(range(len(self))[index])


@final
@dataclass(frozen=True, eq=False)
class PairStore(_Records[TokenizedPair]):
    """The token ids of a split, at four bytes per token, in memory or mapped from a file.

    Quantities of all pairs are separate columns, so that reading them leaves the ids on disk.

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
        """Build a store in memory."""
        return cls(pa.Table.from_batches([token_records(pairs)]))

    @override
    def _item(self, index: int) -> TokenizedPair:
        return TokenizedPair(
            prompt=self._list("prompt", index) or [],
            chosen=self._response("chosen", index, self.truncated[index, 0]),
            rejected=self._response("rejected", index, self.truncated[index, 1]),
            prompted=self._list("prompted", index),
            index=index,
        )

    def _response(self, side: str, index: int, truncated: np.bool_) -> TokenizedResponse:
        ids = self._list(side, index) or []
        scored = self._list(f"{side}_scored", index)
        return TokenizedResponse(
            ids, [True] * len(ids) if scored is None else list(map(bool, scored)), bool(truncated)
        )

    def _list(self, name: str, index: int) -> list[int] | None:
        values = self.table.column(name)[index].values
        return None if values is None else as_array(values).tolist()

    @property
    def part_lengths(self) -> NDArray[np.int64]:
        """Number of tokens of prompt, chosen, rejected and prompted prompt, ``[pair, 4]``."""
        return np.stack([list_lengths(self.table, part) for part in PAIR_PARTS], axis=1)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of scored tokens of each response, ``[pair, side]``."""
        return numbers(self.table, "scored_tokens").astype(np.int64)

    @cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """Whether each response was cut, ``[pair, side]``."""
        return numbers(self.table, "truncated").astype(np.bool_)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Number of tokens of each pair's longest sequence."""
        prompt, chosen, rejected, prompted = self.part_lengths.T
        widths: NDArray[np.int64] = np.maximum(prompt, prompted) + np.maximum(chosen, rejected)
        return widths

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """The last scored tokens of the responses that were not cut."""
        return frozenset(np.unique(numbers(self.table, "last")).tolist()) - {NO_END}

    @cached_property
    def shows_stop_token(self) -> NDArray[np.bool_]:
        """Whether each pair has a complete response, which shows how a response ends."""
        shows: NDArray[np.bool_] = (numbers(self.table, "last") != NO_END).any(axis=1)
        return shows

    def hashes(self, parts: Iterable[str]) -> NDArray[np.uint64]:
        """Return a hash of the named parts of each pair; it depends on their order.

        Args:
            parts: any of ``prompt``, ``chosen``, ``rejected``, ``prompted``.
        """
        digests = numbers(self.table, "digests")
        mixed = np.zeros(len(self), dtype=np.uint64)
        for part in parts:
            mixed = (mixed ^ digests[:, PAIR_PARTS.index(part)]) * _ODD
            mixed ^= mixed >> np.uint64(32)
        return mixed

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all tokens of all pairs in their order."""
        digest = hashlib.sha256(np.ascontiguousarray(numbers(self.table, "digests")).data)
        digest.update(np.ascontiguousarray(self.truncated).data)
        return digest.hexdigest()


@final
@dataclass(frozen=True, eq=False)
class PairTexts(_Records[PreferencePair]):
    """The text of a split, decoded on access.

    Values of other columns that JSON cannot express, such as dates, come back as text.

    Args:
        table: the records.
        values: the numeric columns at the same positions.
    """

    table: Arrow
    values: PairValues

    @override
    def _item(self, index: int) -> PreferencePair:
        row = self.table.column("row")[index].as_buffer()
        prompt, chosen, rejected, extra, tools = json.loads(row.to_pybytes().decode("utf-8", "surrogatepass"))
        scores: tuple[float, float] = tuple(self.values.scores[index].tolist())
        return PreferencePair(
            prompt=_as_text(prompt) or "",
            chosen=_as_text(chosen),
            rejected=_as_text(rejected),
            where=self.table.column("where")[index].as_py(),
            extra=extra,
            tools=tuple(tools),
            weight=float(self.values.weight[index]),
            margin=_optional(self.values.margin[index]),
            preference_probability=_optional(self.values.preference_probability[index]),
            scores=None if all(map(math.isnan, scores)) else scores,
            source=int(self.values.source[index]),
        )


def _as_text(part: str | list[Message] | None) -> Text | None:
    return tuple(part) if isinstance(part, list) else part


def _optional(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
