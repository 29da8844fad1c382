"""A record is a prepared pair as Arrow keeps it: its ids, its text, and the numbers that its row has for it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any, TypeAlias, final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_align.data.prepared.values import PairValues
from lit_align.types import Message, PreferencePair, Text, TokenizedPair, TokenizedResponse

Arrow: TypeAlias = Any
"""A table, a batch of records or a column of ``pyarrow``, which has no types of its own."""

PARTS = ("prompt", "chosen", "rejected", "prompted")
SIDES = ("chosen", "rejected")
IDS = pa.list_(pa.int32())
TOKENS = {
    **{part: IDS for part in PARTS},
    **{f"{side}_scored": pa.list_(pa.uint8()) for side in SIDES},
    "scored_tokens": pa.list_(pa.int32(), 2),
    "truncated": pa.list_(pa.uint8(), 2),
    "last": pa.list_(pa.int32(), 2),
    "digests": pa.list_(pa.uint64(), len(PARTS)),
}
"""Of the ids: the parts, which tokens are scored where not all are, and what is counted of all pairs at once."""
ROWS = {"where": pa.large_string(), "row": pa.large_binary()}
VALUES = {
    "source": pa.int32(),
    "scores": pa.list_(pa.float64(), 2),
    **{name: pa.float64() for name in ("weight", "margin", "preference_probability")},
}
SCHEMA = pa.schema({**TOKENS, **ROWS, **VALUES})
NO_END = -1


def token_records(pairs: Sequence[TokenizedPair]) -> Arrow:
    """The ids of some pairs."""
    sides = [pair.sides for pair in pairs]
    parts = {
        **{part: [getattr(pair, part).ids for pair in pairs] for part in SIDES},
        **{part: [getattr(pair, part) for pair in pairs] for part in ("prompt", "prompted")},
        **{f"{side}_scored": [_mask(pair[place]) for pair in sides] for place, side in enumerate(SIDES)},
    }
    counted: dict[str, list[int]] = {
        "scored_tokens": [side.length for pair in sides for side in pair],
        "truncated": [side.truncated for pair in sides for side in pair],
        "last": [_last(side) for pair in sides for side in pair],
        "digests": [digest for pair in pairs for digest in _digests(pair)],
    }
    columns = {**{name: _lists(parts[name], TOKENS[name]) for name in parts}, **_fixed(counted)}
    return pa.record_batch([columns[name] for name in TOKENS], pa.schema(TOKENS))


def records(pairs: Sequence[PreferencePair], tokenized: Sequence[TokenizedPair]) -> Arrow:
    """Everything that is kept of some pairs, at the same positions in both lists."""
    tokens = token_records(tokenized)
    values = PairValues.of(pairs)
    rows = {"where": [pair.where.encode() for pair in pairs], "row": [_spelled(pair) for pair in pairs]}
    columns = [
        *tokens.columns,
        *(_texts(rows[name], kind) for name, kind in ROWS.items()),
        *(_numbers(getattr(values, name), kind) for name, kind in VALUES.items()),
    ]
    return pa.record_batch(columns, SCHEMA)


def values_of(table: Arrow) -> PairValues:
    """The numbers of all pairs."""
    return PairValues(**{field.name: numbers(table, field.name) for field in fields(PairValues)})


def numbers(table: Arrow, name: str) -> NDArray[Any]:
    """A column of numbers, or of so many numbers for each pair, as an array."""
    kind = table.schema.field(name).type
    listed = pa.types.is_fixed_size_list(kind)
    chunks = [plain(chunk.flatten() if listed else chunk) for chunk in table.column(name).chunks]
    found = np.concatenate([np.empty(0, (kind.value_type if listed else kind).to_pandas_dtype()), *chunks])
    return found.reshape(-1, kind.list_size) if listed else found


def counts(table: Arrow, name: str) -> NDArray[np.int64]:
    """How long each list of a column is; 0 for none."""
    return np.concatenate(
        [np.empty(0, np.int64), *(np.diff(plain(each.offsets)) for each in table.column(name).chunks)]
    )


def plain(array: Arrow) -> NDArray[Any]:
    """Numbers without nulls as they lie in memory; ``pyarrow`` itself would import ``pandas`` for it."""
    kind = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, kind)
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


@final
class PairTexts(Sequence[PreferencePair]):
    """The pairs of a split as text, read one by one when they are asked for.

    What JSON has no word for in a row's other columns, such as a date, comes back as its text.

    Args:
        table: the records.
        values: the numbers, at the same positions.
    """

    def __init__(self, table: Arrow, values: PairValues) -> None:
        self.table = table
        self.values = values

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, place: int) -> PreferencePair: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[PreferencePair]: ...
    def __getitem__(self, place: int | slice) -> PreferencePair | Sequence[PreferencePair]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        row = self.table.column("row")[at].as_buffer()
        prompt, chosen, rejected, extra, tools = json.loads(row.to_pybytes().decode("utf-8", "surrogatepass"))
        scores: tuple[float, float] = tuple(self.values.scores[at].tolist())
        return PreferencePair(
            prompt=_read(prompt) or "",
            chosen=_read(chosen),
            rejected=_read(rejected),
            where=self.table.column("where")[at].as_py(),
            extra=extra,
            tools=tuple(tools),
            weight=float(self.values.weight[at]),
            margin=_known(self.values.margin[at]),
            preference_probability=_known(self.values.preference_probability[at]),
            scores=None if all(map(math.isnan, scores)) else scores,
            source=int(self.values.source[at]),
        )


def _spelled(pair: PreferencePair) -> bytes:
    row = (pair.prompt, pair.chosen, pair.rejected, dict(pair.extra), pair.tools)
    return json.dumps(row, ensure_ascii=False, default=_in_json).encode("utf-8", "surrogatepass")


def _in_json(value: object) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


def _read(part: str | list[Message] | None) -> Text | None:
    return tuple(part) if isinstance(part, list) else part


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


# ── columns, from their buffers: ``pa.array`` would import ``pandas`` in every process ──────────────────────────────


def _column(values: NDArray[Any], kind: Arrow) -> Arrow:
    ready = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, ready.size, [None, pa.py_buffer(ready)])


def _lists(parts: Sequence[Sequence[int] | None], kind: Arrow) -> Arrow:
    """A column of lists, null where there is none."""
    there = np.packbits(np.array([part is not None for part in parts], np.bool_), bitorder="little")
    whole = [part or () for part in parts]
    ends = np.cumsum([0, *map(len, whole)], dtype=np.int32)
    values = np.fromiter(chain.from_iterable(whole), kind.value_type.to_pandas_dtype(), int(ends[-1]))
    buffers = [pa.py_buffer(there), pa.py_buffer(ends)]
    return pa.Array.from_buffers(kind, len(parts), buffers, children=[_column(values, kind.value_type)])


def _fixed(counted: Mapping[str, Sequence[int]]) -> dict[str, Arrow]:
    arrays = {name: np.array(flat, TOKENS[name].value_type.to_pandas_dtype()) for name, flat in counted.items()}
    return {name: _numbers(array, TOKENS[name]) for name, array in arrays.items()}


def _numbers(values: NDArray[Any], kind: Arrow) -> Arrow:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_column(values.reshape(-1), kind.value_type), type=kind)
    return _column(values, kind)


def _texts(texts: Sequence[bytes], kind: Arrow) -> Arrow:
    ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return pa.Array.from_buffers(kind, len(texts), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])


# ── what is in them ─────────────────────────────────────────────────────────────────────────────────────────────────


def _mask(response: TokenizedResponse) -> Sequence[bool] | None:
    """Which tokens are scored; None where all are."""
    return None if all(response.scored) else response.scored


def _last(response: TokenizedResponse) -> int:
    """The last scored token of a whole response."""
    scored = [] if response.truncated else [place for place, scored in enumerate(response.scored) if scored]
    return response.ids[scored[-1]] if scored else NO_END


def _digests(pair: TokenizedPair) -> list[int]:
    """A number for each part that changes when a token of it does, or what of it is scored; 0 for none."""
    sides = [_digest(side.ids, _mask(side)) for side in pair.sides]
    return [_digest(pair.prompt), *sides, 0 if pair.prompted is None else _digest(pair.prompted)]


def _digest(ids: Sequence[int], scored: Sequence[bool] | None = None) -> int:
    digest = hashlib.blake2b(np.array(ids, dtype=np.int32).tobytes(), digest_size=8)
    if scored is not None:
        digest.update(b"scored" + bytes(scored))
    return int.from_bytes(digest.digest(), "little")
