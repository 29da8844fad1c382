"""Sources of raw rows: resolving the name of a source, and reading its rows."""

from __future__ import annotations

import glob
import lzma
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from typing_extensions import override

from lit_align import testbed
from lit_align.data.formats.base import RawRows
from lit_align.data.sources.hub import STREAM, HubName, is_saved, read_hub, read_saved, read_stream
from lit_align.data.sources.local import OPENERS, LocalFile, read_array, read_comma, read_lines, read_parquet, read_tab
from lit_align.errors import DataError, data_not_found
from lit_align.files import at_home

READERS: Mapping[str, Callable[[LocalFile], RawRows]] = {
    ".jsonl": read_lines,
    ".json": read_array,
    ".csv": read_comma,
    ".tsv": read_tab,
    ".parquet": read_parquet,
}


def read_source(source: str) -> RawRows:
    """Read the rows of a source in order; lines are counted from 1.

    =============================================  ====================================================================
    ``pairs.jsonl``                                a file: ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet``,
                                                   optionally followed by ``.gz``, ``.bz2``, ``.xz`` or ``.zst``
    ``shards/*.parquet``                           all files that match a pattern, sorted by name; a file or
                                                   folder that exists under the name as written comes first
    ``saved``, ``saved:train``                     a folder that ``datasets`` wrote with ``save_to_disk``
    ``testbed:train``                              a part of the testbed
    ``owner/name#config@revision:train[:1000]``    a data set on the hub; the default split is ``train``
    ``stream:owner/name:train[:1000]``             the same, read during the download
    =============================================  ====================================================================

    A name that exists on disk or looks like a path is local and must exist: a mistyped path is never looked up on the
    hub.

    Raises:
        FileNotFoundError: the file, folder or data set does not exist.
        DataError: the source as a whole cannot be read, or has no rows.
    """
    empty = True
    for row in locate_source(source).rows():
        empty = False
        yield row
    if empty:
        raise DataError(source, "no rows")


class Place(ABC):
    """Interface of a resolved source."""

    @abstractmethod
    def rows(self) -> RawRows:
        """Read the rows from the first one on."""


@final
@dataclass(frozen=True)
class Files(Place):
    """Local files, one after the other."""

    files: tuple[LocalFile, ...]

    @override
    def rows(self) -> RawRows:
        for file in self.files:
            yield from _read_file(file)


@final
@dataclass(frozen=True)
class Saved(Place):
    """A split of a folder written by ``save_to_disk``."""

    source: str
    folder: Path
    split: str | None = None

    @override
    def rows(self) -> RawRows:
        return read_saved(self.source, self.folder, self.split)


@final
@dataclass(frozen=True)
class Hub(Place):
    """A data set on the hub, downloaded as a whole or streamed."""

    source: str
    name: HubName
    stream: bool = False

    @override
    def rows(self) -> RawRows:
        return (read_stream if self.stream else read_hub)(self.source, self.name)


def locate_source(source: str) -> Place:
    """Resolve the name of a source.

    Raises:
        FileNotFoundError: the file, folder or data set does not exist.
        DataError: the source is a folder without a saved data set.

    >>> locate_source("Anthropic/hh-rlhf@v1:test").name.split
    'test'
    """
    if source.startswith(STREAM):
        return Hub(source, _hub_name(source.removeprefix(STREAM)), stream=True)
    if "\0" in source:
        raise FileNotFoundError(f"data file not found: {source!r}")
    path = testbed.resolve(source) or at_home(source)
    if path.is_file():
        return Files((LocalFile(path, path.name),))
    return _saved_folder(source, path) or _pattern(source, path) or Hub(source, _hub_name(source))


def _saved_folder(source: str, path: Path) -> Saved | None:
    if path.is_dir():
        if not is_saved(path):
            expected = f"{path}/*.parquet for all its files, or a folder that save_to_disk wrote"
            raise DataError(source, f"is a folder; expected a file ({', '.join(READERS)}), {expected}")
        return Saved(source, path)
    before, colon, split = source.rpartition(":")
    folder = at_home(before)
    return Saved(source, folder, split) if colon and before and folder.is_dir() and is_saved(folder) else None


def _pattern(source: str, path: Path) -> Files | None:
    if not glob.has_magic(source) or HubName.parse(source):
        return None
    paths = [Path(name) for name in sorted(glob.glob(_with_literal_folders(path), recursive=True))]
    files = tuple(LocalFile(path, str(path)) for path in paths if path.is_file())
    if not files:
        raise FileNotFoundError(f"data file not found: no file matches the pattern {source}")
    return Files(files)


def _with_literal_folders(pattern: Path) -> str:
    """Return a pattern in which the leading folders that exist under their literal names, brackets included, match."""
    folder = next(parent for parent in pattern.parents if parent.exists() or parent == parent.parent)
    if folder == Path("."):
        return str(pattern)
    return str(Path(glob.escape(str(folder))) / pattern.relative_to(folder))


def _hub_name(source: str) -> HubName:
    hub = HubName.parse(source)
    suffix = LocalFile(Path(source), source).suffix
    if hub is None or suffix in READERS or Path(source.split("/")[0]).exists():
        raise FileNotFoundError(data_not_found(source))
    return hub


def _read_file(file: LocalFile) -> RawRows:
    if file.suffix not in READERS:
        known = ", ".join(f"*{suffix}" for suffix in READERS)
        raise DataError(str(file.path), f"unknown kind of file; expected {known}, also with {', '.join(OPENERS)}")
    try:
        yield from READERS[file.suffix](file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(str(file.path), f"cannot be read to its end: {type(error).__name__}: {error}") from error
