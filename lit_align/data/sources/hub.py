"""RawRows of data sets of the ``datasets`` library: folders written by ``save_to_disk``, and data sets on the hub."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lit_align.data.formats.base import RawRow, RawRows
from lit_align.data.sources.local import arrow_rows
from lit_align.errors import DataError, shown

STREAM = "stream:"
_BATCH = 256
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
_HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(#(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.+%:\[\]-]+))?",
    re.ASCII,
)
_SLICE = re.compile(r"(?P<split>[\w.-]+)(\[(?P<start>\d*):(?P<end>\d*)\])?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """The parts of ``owner/name[#config][@revision][:split]``.

    Args:
        name: owner and name.
        config: configuration of the data set; None for a data set with only one.
        revision: branch, tag or commit hash.
        split: a split, a slice, or a sum of splits: ``train[:1000]``, ``train[10%:20%]``, ``train+test``.

    >>> HubName.parse("openai/summaries#comparisons@v1:train[:1000]")
    HubName(name='openai/summaries', config='comparisons', revision='v1', split='train[:1000]')
    """

    name: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Parse a hub name; None if the text is not one."""
        match = _HUB_NAME.fullmatch(text)
        return cls(**{key: part for key, part in match.groupdict().items() if part}) if match else None


def read_hub(source: str, hub: HubName) -> RawRows:
    """Read a data set that ``datasets`` downloads and caches as a whole."""
    yield from _numbered(_dataset_rows(_load(source, hub, split=hub.split)), source)


def read_stream(source: str, hub: HubName) -> RawRows:
    """Read a data set during its download, without storing it.

    Raises:
        DataError: the split is not ``name`` or ``name[start:end]`` in rows. Streams support no percentages or sums.
    """
    part = _SLICE.fullmatch(hub.split)
    if part is None:
        raise DataError(
            source, f"a stream has no split {shown(hub.split)}; expected a name, or name[start:end] in rows"
        )
    rows: Any = _load(source, hub, split=part["split"], streaming=True)
    if getattr(rows, "features", None):
        rows = rows.cast(_undecoded(rows.features))
    start, end = int(part["start"] or 0), int(part["end"]) if part["end"] else None
    yield from _numbered(islice(_with_source(rows, source), start, end), source, start + 1)


def _load(source: str, hub: HubName, **settings: Any) -> Iterable[Any]:
    from datasets import load_dataset

    config = [] if hub.config is None else [hub.config]
    try:
        rows: Iterable[Any] = load_dataset(hub.name, *config, revision=hub.revision, **settings)
    except FileNotFoundError:
        raise
    except Exception as error:  # anything that the library raises for a name, a split or a connection
        raise _unreadable(source, error) from error
    return rows


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by ``save_to_disk``."""
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def read_saved(source: str, folder: Path, split: str | None) -> RawRows:
    """Read a folder written by ``save_to_disk``, mapped into memory.

    Args:
        source: name of the source in error messages.
        folder: the folder.
        split: one of the splits; None for a folder with a single data set.

    Raises:
        DataError: the folder is damaged, or has no such split.
    """
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # anything that the library raises for a damaged folder
        raise _unreadable(source, error) from error
    splits = list(data) if isinstance(data, dict) else []
    if isinstance(data, dict) and not splits:
        raise DataError(source, "the folder holds no splits")
    if splits and split not in splits:
        raise DataError(source, f"holds the splits {', '.join(splits)}; name one: {folder}:{splits[0]}")
    if split and not splits:
        raise DataError(source, f"the folder holds one data set without splits; leave out ':{split}'")
    yield from _numbered(_dataset_rows(data[split] if splits else data), source)


def _dataset_rows(data: Any) -> Iterator[dict[str, Any] | DataError]:
    """Yield the rows of a data set as they are stored, whatever format it was last looked at in.

    Images, sound and video stay bytes: their columns are not used, and decoding them needs further libraries.
    """
    features = _undecoded(data.features)
    for batch in data.with_format("arrow").iter(_BATCH):
        for row in arrow_rows(batch):
            yield row if isinstance(row, DataError) else features.decode_example(row)


def _undecoded(features: Any) -> Any:
    """Return a copy of features in which images, sound and video are not decoded; JSON is."""
    import datasets

    json_text: Any = getattr(datasets, "Json", ())

    def visit(feature: Any) -> None:
        for part in feature.values() if isinstance(feature, dict) else feature if isinstance(feature, list) else ():
            visit(part)
        if hasattr(feature, "feature"):
            visit(feature.feature)
        elif hasattr(feature, "decode") and not isinstance(feature, json_text):
            feature.decode = False

    copied = copy.deepcopy(features)
    visit(copied)
    return copied


def _numbered(rows: Iterable[Any], source: str, first: int = 1) -> RawRows:
    for number, row in enumerate(_with_source(rows, source), start=first):
        where = f"{source}:{number}"
        if isinstance(row, DataError):
            yield DataError(where, row.reason, row.column)
        else:
            yield RawRow(row, where, null_filled=True)


def _with_source(rows: Iterable[Any], source: str) -> Iterable[Any]:
    """Yield the rows, and convert errors during the iteration to errors that name the source."""
    try:
        yield from rows
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # anything that the library raises for broken data or a lost connection
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> DataError:
    return DataError(source, f"the data set cannot be read: {type(error).__name__}: {shown(str(error))}")
