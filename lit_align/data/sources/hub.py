"""Rows of data sets of the ``datasets`` library: folders that it saved, and data sets on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lit_align.data.formats.rows import RawRow, Rows
from lit_align.errors import DataError, shown

NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(#(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.+%:\[\]-]+))?",
    re.ASCII,
)
STREAM = "stream:"
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
_SLICE = re.compile(r"(?P<split>[\w.-]+)(\[(?P<start>\d*):(?P<end>\d*)\])?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """The parts of ``owner/name[#config][@revision][:split]``.

    Args:
        name: owner and name.
        config: which of the data set's configurations; None where it has one.
        revision: branch, tag or commit hash.
        split: a split, also a part of it or a sum: ``train[:1000]``, ``train[10%:20%]``, ``train+test``.

    >>> HubName.parse("openai/summaries#comparisons@v1:train[:1000]")
    HubName(name='openai/summaries', config='comparisons', revision='v1', split='train[:1000]')
    """

    name: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """The parts, or None if it is no hub name."""
        found = NAME.fullmatch(text)
        return cls(**{key: part for key, part in found.groupdict().items() if part}) if found else None


def read_hub(source: str, hub: HubName) -> Rows:
    """Rows of a data set that is downloaded whole, once, and kept by ``datasets``."""
    yield from _numbered(_load(source, hub, split=hub.split), source)


def read_stream(source: str, hub: HubName) -> Rows:
    """Rows of a data set while it is being downloaded; nothing is kept on disk.

    Raises:
        DataError: the split is no ``name`` or ``name[start:end]`` (in rows); a stream knows no percentages or sums.
    """
    part = _SLICE.fullmatch(hub.split)
    if part is None:
        raise DataError(
            source, f"a stream has no split {shown(hub.split)}; expected a name, or name[start:end] in rows"
        )
    rows = _load(source, hub, split=part["split"], streaming=True)
    start, end = int(part["start"] or 0), int(part["end"]) if part["end"] else None
    yield from _numbered(islice(_whole(rows, source), start, end), source, start + 1)


def _load(source: str, hub: HubName, **settings: Any) -> Iterable[Any]:
    from datasets import load_dataset

    config = [] if hub.config is None else [hub.config]
    try:
        rows: Iterable[Any] = load_dataset(hub.name, *config, revision=hub.revision, **settings)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the library makes of a name, a split or a connection
        raise _unreadable(source, error) from error
    return rows


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def read_saved(source: str, folder: Path, split: str | None) -> Rows:
    """Rows of a folder that ``save_to_disk`` wrote, mapped into memory.

    Args:
        source: how messages call it.
        folder: the folder.
        split: which split of a folder with several; None for a folder with one data set.

    Raises:
        DataError: the folder is not whole, or the split not one of it.
    """
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # whatever the library makes of a damaged folder
        raise _unreadable(source, error) from error
    splits = list(data) if isinstance(data, dict) else []
    if isinstance(data, dict) and not splits:
        raise DataError(source, "the folder holds no splits")
    if splits and split not in splits:
        raise DataError(source, f"holds the splits {', '.join(splits)}; name one: {folder}:{splits[0]}")
    if split and not splits:
        raise DataError(source, f"the folder holds one data set without splits; leave out ':{split}'")
    yield from _numbered(data[split] if splits else data, source)


def _numbered(rows: Iterable[Any], source: str, first: int = 1) -> Rows:
    for number, row in enumerate(_whole(rows, source), start=first):
        yield RawRow(row, f"{source}:{number}")


def _whole(rows: Iterable[Any], source: str) -> Iterable[Any]:
    """The rows; what goes wrong on the way becomes an error that names the source."""
    try:
        yield from rows
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # whatever the library makes of broken data or a connection that ends
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> DataError:
    return DataError(source, f"the data set cannot be read: {type(error).__name__}: {shown(str(error))}")
