"""A cache of per-token log-probabilities on disk, keyed by the ids that they belong to."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from lit_align.files import digest, own_folder, to_disk
from lit_align.types import PairBatch

Keys: TypeAlias = NDArray[np.uint64]
"""A sequence's 128 bits, ``[row, 2]``."""
Values: TypeAlias = NDArray[np.float32] | NDArray[np.float64]
"""Log-probabilities."""

MANIFEST, SHARD = "manifest.json", ".arrow"
_DTYPES = {"float32": pa.float32(), "float64": pa.float64()}
_SHARD_VALUES = 2**22
_SHARD_SECONDS = 60.0
_ABANDONED = 3600.0


def sequence_keys(batch: PairBatch) -> Keys:
    """Hash the ids of each sequence of a batch and which of them are scored; pair by pair, chosen before rejected.

    Padding, the position in the batch and the other rows do not matter.

    Returns:
        ``[2 · pair, 2]``.
    """
    marked = batch.input_ids * 2 + batch.mask
    rows = torch.where(batch.attention_mask, marked, -1).flatten(0, 1).cpu().numpy().astype("<i8")
    digests = b"".join(hashlib.blake2b(row[row >= 0].tobytes(), digest_size=16).digest() for row in rows)
    return np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)


@final
@dataclass(frozen=True, eq=False)
class _Index:
    """Shard, offset and length of the values of each key; keys are sorted."""

    keys: Keys
    shard: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


@final
class ReferenceCache:
    """The log-probabilities of one reference at one precision.

    A folder of shards, each an Arrow file that is written under a temporary name, flushed, and renamed to its SHA-256:
    it exists as a whole or not at all, and its name tells whether it is undamaged. A computation that is killed loses
    at most the last minute. Several processes may add shards at once. Values are mapped into memory and read on
    demand; the index takes 36 bytes per sequence.

    Args:
        root: folder of all references' caches; the user chooses it, so its owner is checked.
        identity: everything that a value depends on apart from the sequence, as plain data.
        dtype: of the values.

    Raises:
        PermissionError: others may write to the folder.
    """

    def __init__(self, root: Path, identity: Mapping[str, Any], dtype: str = "float32") -> None:
        own_folder(root, "model.reference.cache")
        described = json.dumps(identity, sort_keys=True, indent=2, default=str)
        self.folder = root / hashlib.sha256(described.encode()).hexdigest()[:32]
        self.schema = pa.schema({"key": pa.binary(16), "log_probs": pa.list_(_DTYPES[dtype])})
        self.dtype = np.dtype(dtype)
        self._shards: list[Values] = []
        self._index = _Index(*_empty())
        self._new: dict[bytes, Values] = {}
        self._since = time.monotonic()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if not (self.folder / MANIFEST).exists():
            self._write(described.encode(), self.folder / MANIFEST)
        self.load()

    def __len__(self) -> int:
        return len(self._index.keys)

    def load(self) -> None:
        """Index the shards in the folder; a damaged one is removed with a warning."""
        self._remove_abandoned()
        parts: list[list[Any]] = []
        self._shards = []
        for path in sorted(self.folder.glob(f"*{SHARD}")):
            read = self._read(path)
            if read is not None:
                keys, starts, values = read
                number = np.full(len(keys), len(self._shards), np.int32)
                parts.append([keys, number, starts[:-1], np.diff(starts)])
                self._shards.append(values)
        columns: list[Any] = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else _empty()
        order = np.lexsort((columns[0][:, 1], columns[0][:, 0]))
        repeated = np.zeros(len(order), np.bool_)
        repeated[1:] = (columns[0][order[1:]] == columns[0][order[:-1]]).all(1)
        self._index = _Index(*(column[order[~repeated]] for column in columns))

    def known(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which of the sequences have values in the index."""
        return self._places(keys) >= 0

    def read(self, keys: Keys, width: int) -> Values:
        """Read the values of some sequences, padded with zeros.

        Returns:
            ``[row, width]``.
        """
        places = self._places(keys)
        lengths = self._index.length[places]
        within = np.arange(width) < lengths[:, None]
        offsets = self._index.start[places][:, None] + np.arange(width)
        numbers = self._index.shard[places]
        result = np.zeros((len(keys), width), self.dtype)
        for number in np.unique(numbers):
            selected = within & (numbers == number)[:, None]
            result[selected] = self._shards[number][offsets[selected]]
        return result

    def add(self, keys: Keys, values: list[Values]) -> None:
        """Add the values of some sequences; they can be read after ``flush`` and ``load``."""
        self._new |= {key.tobytes(): row for key, row in zip(keys, values, strict=True)}
        waiting = sum(map(len, self._new.values()))
        if waiting >= _SHARD_VALUES or time.monotonic() - self._since >= _SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the added values as a shard."""
        self._since = time.monotonic()
        if not self._new:
            return
        offsets = np.cumsum([0, *map(len, self._new.values())], dtype=np.int32)
        flat = np.concatenate(list(self._new.values())).astype(self.dtype)
        table = pa.record_batch(
            [pa.array(list(self._new), pa.binary(16)), pa.ListArray.from_arrays(offsets, pa.array(flat))],
            schema=self.schema,
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, self.schema) as writer:
            writer.write_batch(table)
        content = sink.getvalue().to_pybytes()
        self._write(content, self.folder / f"{hashlib.sha256(content).hexdigest()}{SHARD}")
        self._new = {}

    def _places(self, keys: Keys) -> NDArray[np.int64]:
        """Find the index's row of each key; -1 where there is none."""
        if not len(self):
            return np.full(len(keys), -1)
        index = self._index.keys
        places = np.minimum(np.searchsorted(index[:, 0], keys[:, 0]), len(index) - 1)
        while True:  # step through keys with the same first half to the one with the same second half
            ahead = (index[places, 0] == keys[:, 0]) & (index[places, 1] < keys[:, 1]) & (places + 1 < len(index))
            if not ahead.any():
                return np.where((index[places] == keys).all(1), places, -1)
            places = places + ahead

    def _read(self, path: Path) -> tuple[Keys, NDArray[np.int64], Values] | None:
        if digest(path) != path.name.removesuffix(SHARD):
            warnings.warn(f"the log-probs in {path} are damaged; computing them again", stacklevel=2)
            path.unlink(missing_ok=True)
            return None
        column: Any = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        keys = np.frombuffer(b"".join(column["key"].to_pylist()), "<u8").astype(np.uint64).reshape(-1, 2)
        log_probs = column["log_probs"]
        return keys, log_probs.offsets.to_numpy().astype(np.int64), log_probs.values.to_numpy(zero_copy_only=True)

    def _write(self, content: bytes, target: Path) -> None:
        temporary = target.with_name(f".{os.getpid()}-{target.name[:16]}.partial")
        try:
            temporary.write_bytes(content)
            to_disk(temporary)
            temporary.replace(target)
            to_disk(self.folder)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_abandoned(self) -> None:
        """Remove unfinished files of killed processes; a running process takes seconds to finish one."""
        for path in self.folder.glob(".*.partial"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)


def _empty() -> list[Any]:
    counts = (np.int32, np.int64, np.int64)
    return [np.zeros((0, 2), np.uint64), *(np.zeros(0, kind) for kind in counts)]
