"""A pair store keeps the token ids of a whole split in a few flat arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from lit_align.types import TokenizedPair, TokenizedResponse

PARTS = ("prompt", "chosen", "rejected", "prompted")


@dataclass(frozen=True, eq=False)
class PairStore(Sequence[TokenizedPair]):
    """The pairs of a split, each at its position; four bytes a token.

    Args:
        ids: the tokens of all parts of all pairs, one after the other.
        ends: where in ``ids`` each part of each pair ends; its start is the end of the part before.
        truncated: whether each response was cut.
        has_prompted: the pairs carry the prompt with the quality prompt in it.

    >>> pair = TokenizedPair([1, 2], TokenizedResponse([3], [True]), TokenizedResponse([4, 5], [True, True]))
    >>> store = PairStore.of([pair, pair])
    >>> len(store), store[1].rejected.ids, store.lengths.tolist()
    (2, [4, 5], [[1, 2], [1, 2]])
    """

    ids: NDArray[np.int32]
    ends: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    has_prompted: bool

    @classmethod
    def of(cls, pairs: Sequence[TokenizedPair]) -> PairStore:
        """A store of these pairs; every response token is scored."""
        parts = [part for pair in pairs for part in _parts(pair)]
        return cls(
            ids=np.fromiter(chain.from_iterable(parts), dtype=np.int32, count=sum(map(len, parts))),
            ends=np.cumsum([len(part) for part in parts], dtype=np.int64).reshape(len(pairs), len(PARTS)),
            truncated=np.array([[side.truncated for side in pair.sides] for pair in pairs], dtype=np.bool_),
            has_prompted=any(pair.prompted is not None for pair in pairs),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenizedPair]: ...
    def __getitem__(self, index: int | slice) -> TokenizedPair | Sequence[TokenizedPair]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        start = int(self.ends[place - 1, -1]) if place else 0
        bounds = [start, *self.ends[place].tolist()]
        prompt, chosen, rejected, prompted = (
            self.ids[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)
        )
        cut = self.truncated[place].tolist()
        return TokenizedPair(
            prompt=prompt,
            chosen=TokenizedResponse(chosen, [True] * len(chosen), cut[0]),
            rejected=TokenizedResponse(rejected, [True] * len(rejected), cut[1]),
            prompted=prompted if self.has_prompted else None,
            index=place,
        )

    @property
    def part_lengths(self) -> NDArray[np.int64]:
        """Tokens of prompt, chosen, rejected and prompted prompt of each pair."""
        flat = self.ends.reshape(-1)
        lengths: NDArray[np.int64] = np.diff(flat, prepend=0).reshape(self.ends.shape)
        return lengths

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Scored tokens of each response: chosen, rejected."""
        return self.part_lengths[:, 1:3]

    @property
    def widths(self) -> NDArray[np.int64]:
        """Tokens of the longest sequence of each pair: what it costs in a batch."""
        prompt, chosen, rejected, prompted = self.part_lengths.T
        widths: NDArray[np.int64] = np.maximum(prompt, prompted) + np.maximum(chosen, rejected)
        return widths

    @property
    def end_tokens(self) -> frozenset[int]:
        """The last tokens of the responses that were not cut."""
        last = self.ids[self.ends[:, 1:3] - 1]
        return frozenset(np.unique(last[~self.truncated]).tolist())

    def hashes(self, parts: Iterable[str]) -> list[bytes]:
        """A digest of the named parts of each pair, in the order they are named.

        Args:
            parts: of ``prompt``, ``chosen``, ``rejected``, ``prompted``.
        """
        columns = [PARTS.index(part) for part in parts]
        starts = np.concatenate([[0], self.ends.reshape(-1)[:-1]]).reshape(self.ends.shape)
        spans = np.stack([starts[:, columns], self.ends[:, columns]], axis=-1)
        return [self._digest(row) for row in spans.tolist()]

    def _digest(self, spans: list[list[int]]) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for start, end in spans:
            digest.update((end - start).to_bytes(8, "little"))
            digest.update(self.ids[start:end].tobytes())
        return digest.digest()

    @property
    def fingerprint(self) -> str:
        """Changes when any token of any pair does, or their order."""
        digest = hashlib.sha256()
        for array in (self.ids, self.ends, self.truncated):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _parts(pair: TokenizedPair) -> tuple[Sequence[int], ...]:
    return pair.prompt, pair.chosen.ids, pair.rejected.ids, pair.prompted or ()
