"""A raw row is what a source holds in one place, before anybody asks what its columns mean."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

from lit_align.errors import DataError


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

    def open(self) -> BufferedIOBase:
        """Its bytes, unpacked."""
        return OPENERS[self._packing](self.path) if self._packing in OPENERS else self.path.open("rb")

    @property
    def _packing(self) -> str:
        return self.path.suffix.lower()


def _open_zst(path: Path) -> BufferedIOBase:
    import pyarrow

    return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: Mapping[str, Callable[[Path], BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zst,
}
