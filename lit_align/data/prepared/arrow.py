"""Arrow records of prepared pairs: the schema, building record batches, and reading columns as arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_align.types import PreferencePair, TokenizedPair, TokenizedResponse

Arrow: TypeAlias = Any
"""A table, record batch, column or type of ``pyarrow``, which has no type annotations."""

PAIR_PARTS = ("prompt", "chosen", "rejected", "prompted")
_SIDES = ("chosen", "rejected")
TOKENS = {
    **{part: pa.list_(pa.int32()) for part in PAIR_PARTS},
    **{f"{side}_scored": pa.list_(pa.uint8()) for side in _SIDES},
    "scored_tokens": pa.list_(pa.int32(), 2),
    "truncated": pa.list_(pa.uint8(), 2),
    "last": pa.list_(pa.int32(), 2),
    "digests": pa.list_(pa.uint64(), len(PAIR_PARTS)),
}
"""Columns of token ids: the parts, the masks of responses that are not scored completely, and summaries of each."""
ROWS = {"where": pa.large_string(), "row": pa.large_binary()}
VALUES = {
    "source": pa.int32(),
    "scores": pa.list_(pa.float64(), 2),
    **{name: pa.float64() for name in ("weight", "margin", "preference_probability")},
}
SCHEMA = pa.schema({**TOKENS, **ROWS, **VALUES})
NO_END = -1
"""Value of ``last`` for a response that was cut or is absent."""


@dataclass(frozen=True, eq=False)
class PairValues:
    """Numeric columns of the pairs of a split; NaN where a row has no value.

    Args:
        source: number of each pair's source.
        scores: scores of the two sides, ``[pair, side]``.
        weight: weight of each pair.
        margin: margin by which the chosen response should win.
        preference_probability: probability that the preference is right.
    """

    source: NDArray[np.int32]
    scores: NDArray[np.float64]
    weight: NDArray[np.float64]
    margin: NDArray[np.float64]
    preference_probability: NDArray[np.float64]

    @classmethod
    def of(cls, pairs: Sequence[PreferencePair]) -> PairValues:
        """Collect the values of pairs."""
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
        """Which of ``margin`` and ``preference_probability`` any row has; an objective must use them."""
        columns = {"margin": self.margin, "preference_probability": self.preference_probability}
        return frozenset(name for name, values in columns.items() if not np.isnan(values).all())

    @property
    def plain(self) -> bool:
        """Whether every pair has weight 1 and there is no other column for the objective."""
        return bool((self.weight == 1).all()) and not self.present

    @property
    def fingerprint(self) -> str:
        """Digest of the numbers that reach a batch."""
        used = np.stack([self.weight, self.margin, self.preference_probability])
        return hashlib.blake2b(np.nan_to_num(used, nan=-1.0).tobytes(), digest_size=16).hexdigest()

    @property
    def scores_disagree(self) -> int:
        """Number of pairs with a higher score on the rejected side."""
        return int((self.scores[:, 0] < self.scores[:, 1]).sum())


def token_records(pairs: Sequence[TokenizedPair]) -> Arrow:
    """Build a record batch of token ids."""
    sides = [pair.sides for pair in pairs]
    lists: dict[str, Sequence[Sequence[int] | None]] = {
        **{part: [getattr(pair, part).ids for pair in pairs] for part in _SIDES},
        **{part: [getattr(pair, part) for pair in pairs] for part in ("prompt", "prompted")},
        **{f"{name}_scored": [_mask(pair[side]) for pair in sides] for side, name in enumerate(_SIDES)},
    }
    numbers: dict[str, list[int]] = {
        "scored_tokens": [side.length for pair in sides for side in pair],
        "truncated": [side.truncated for pair in sides for side in pair],
        "last": [_last(side) for pair in sides for side in pair],
        "digests": [digest for pair in pairs for digest in _digests(pair)],
    }
    columns = {
        **{name: _list_column(parts, TOKENS[name]) for name, parts in lists.items()},
        **{
            name: _number_column(np.array(flat, TOKENS[name].value_type.to_pandas_dtype()), TOKENS[name])
            for name, flat in numbers.items()
        },
    }
    return pa.record_batch([columns[name] for name in TOKENS], pa.schema(TOKENS))


def records(pairs: Sequence[PreferencePair], tokenized: Sequence[TokenizedPair]) -> Arrow:
    """Build a record batch of text, token ids and values of the same pairs."""
    values = PairValues.of(pairs)
    rows = {"where": [pair.where.encode() for pair in pairs], "row": [_as_json(pair) for pair in pairs]}
    columns = [
        *token_records(tokenized).columns,
        *(_text_column(rows[name], kind) for name, kind in ROWS.items()),
        *(_number_column(getattr(values, name), kind) for name, kind in VALUES.items()),
    ]
    return pa.record_batch(columns, SCHEMA)


def values_of(table: Arrow) -> PairValues:
    """Read the values of all pairs."""
    return PairValues(**{name: numbers(table, name) for name in VALUES})


def numbers(table: Arrow, name: str) -> NDArray[Any]:
    """Read a column of numbers, or of a fixed number of them per pair, as an array."""
    kind = table.schema.field(name).type
    is_list = pa.types.is_fixed_size_list(kind)
    chunks = [as_array(_flat(chunk) if is_list else chunk) for chunk in table.column(name).chunks]
    values = np.concatenate([np.empty(0, (kind.value_type if is_list else kind).to_pandas_dtype()), *chunks])
    return values.reshape(-1, kind.list_size) if is_list else values


def _flat(lists: Arrow) -> Arrow:
    """Return the values of lists of one size without nulls; ``flatten`` would import ``pyarrow.compute``."""
    size = lists.type.list_size
    return lists.values[lists.offset * size : (lists.offset + len(lists)) * size]


def list_lengths(table: Arrow, name: str) -> NDArray[np.int64]:
    """Read the length of each list of a column; 0 for null."""
    chunks = table.column(name).chunks
    return np.concatenate([np.empty(0, np.int64), *(np.diff(as_array(chunk.offsets)) for chunk in chunks)])


def as_array(array: Arrow) -> NDArray[Any]:
    """View an Arrow array of numbers without nulls; the conversion of ``pyarrow`` would import ``pandas``."""
    kind = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


def _as_json(pair: PreferencePair) -> bytes:
    row = (pair.prompt, pair.chosen, pair.rejected, dict(pair.extra), pair.tools)
    return json.dumps(row, ensure_ascii=False, default=_json_default).encode("utf-8", "surrogatepass")


def _json_default(value: object) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


# ── columns are built from buffers: ``pa.array`` would import ``pandas`` in every process ────────────────────────────


def _column(values: NDArray[Any], kind: Arrow) -> Arrow:
    contiguous = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, contiguous.size, [None, pa.py_buffer(contiguous)])


def _list_column(parts: Sequence[Sequence[int] | None], kind: Arrow) -> Arrow:
    valid = np.packbits(np.array([part is not None for part in parts], np.bool_), bitorder="little")
    lists = [part or () for part in parts]
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(lists), kind.value_type.to_pandas_dtype(), int(ends[-1]))
    buffers = [pa.py_buffer(valid), pa.py_buffer(ends)]
    return pa.Array.from_buffers(kind, len(parts), buffers, children=[_column(values, kind.value_type)])


def _number_column(values: NDArray[Any], kind: Arrow) -> Arrow:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_column(values.reshape(-1), kind.value_type), type=kind)
    return _column(values, kind)


def _text_column(texts: Sequence[bytes], kind: Arrow) -> Arrow:
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])


# ── summaries of token ids ──────────────────────────────────────────────────────────────────────────────────────────


def _mask(response: TokenizedResponse) -> Sequence[bool] | None:
    """Return which tokens are scored; None if all are."""
    return None if all(response.scored) else response.scored


def _last(response: TokenizedResponse) -> int:
    """Return the last scored token of a complete response."""
    scored = [] if response.truncated else [index for index, scored in enumerate(response.scored) if scored]
    return response.ids[scored[-1]] if scored else NO_END


def _digests(pair: TokenizedPair) -> list[int]:
    """Return a digest of each part's ids and mask; 0 for an absent prompted part."""
    sides = [_digest(side.ids, _mask(side)) for side in pair.sides]
    return [_digest(pair.prompt), *sides, 0 if pair.prompted is None else _digest(pair.prompted)]


def _digest(ids: Sequence[int], scored: Sequence[bool] | None = None) -> int:
    digest = hashlib.blake2b(np.array(ids, dtype=np.int32).tobytes(), digest_size=8)
    if scored is not None:
        digest.update(b"scored" + bytes(scored))
    return int.from_bytes(digest.digest(), "little")
