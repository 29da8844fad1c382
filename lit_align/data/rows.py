"""A raw row is what a source holds in one place, before anybody asks what its columns mean."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from lit_align.data.errors import DataError


@dataclass(frozen=True)
class RawRow:
    """One row as it was found: columns and ``file:line``."""

    columns: Mapping[str, Any]
    where: str


Rows: TypeAlias = Iterator[RawRow | DataError]
"""Rows in the order of the source; a line that holds no row comes as the error that says why."""


@dataclass(frozen=True)
class LocalFile:
    """A file and how messages call it.

    Args:
        path: where it lies.
        name: its name in ``file:line``.

    >>> LocalFile(Path("pairs.jsonl.gz"), "pairs.jsonl.gz").kind
    '.jsonl'
    """

    path: Path
    name: str

    @property
    def kind(self) -> str:
        """The suffix that says what it is."""
        path = Path(self.path.stem) if self._packing in OPENERS else self.path
        return path.suffix.lower()

    def open(self) -> IO[bytes]:
        """Its bytes, unpacked."""
        return OPENERS[self._packing](self.path) if self._packing in OPENERS else self.path.open("rb")

    @property
    def _packing(self) -> str:
        return self.path.suffix.lower()


def _open_zst(path: Path) -> IO[bytes]:
    import io

    import pyarrow  # type: ignore[import-untyped]

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.open(path)),
    ".bz2": lambda path: cast(IO[bytes], bz2.open(path)),
    ".xz": lambda path: cast(IO[bytes], lzma.open(path)),
    ".zst": _open_zst,
}
