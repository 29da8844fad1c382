"""A source is where raw rows come from: a local file, or a data set on the hub."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lit_align import testbed
from lit_align.data.errors import DataError, kind, shown

HUB_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<split>[\w.-]+))?", re.ASCII
)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_SHOWN = 80


@dataclass(frozen=True)
class RawRow:
    """One row as it was found: columns and ``file:line``."""

    columns: Mapping[str, Any]
    where: str


Opener = Callable[[Path], IO[bytes] | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]
Rows = Iterator[RawRow | DataError]
"""Rows in the order of the source; a line that holds no row comes as the error that says why."""


def read_rows(source: str) -> Rows:
    """Rows of a source, in its order, lines counted from 1.

    A source is a file (``.jsonl`` or ``.json``, also with ``.gz``, ``.bz2`` or ``.xz`` behind it, or ``.parquet``), a
    part of the testbed (``testbed:train``), or a hub name ``owner/name[@revision][:split]``, split ``train`` unless
    told. What exists on disk or looks like a path is local and must exist: a mistyped path is never looked up.

    Args:
        source: file, testbed name, or hub name.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file as a whole cannot be read, or has no rows.
    """
    found = locate(source)
    rows = _read_file(found) if isinstance(found, Path) else _read_hub(source, found)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(source, "no rows")


def locate(source: str) -> Path | re.Match[str]:
    """The file that a source stands for, or the parts of its hub name.

    >>> locate("Anthropic/hh-rlhf@v1:test").groupdict()
    {'name': 'Anthropic/hh-rlhf', 'revision': 'v1', 'split': 'test'}
    """
    path = testbed.resolve(source) or Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(source, f"is a folder; expected a file ({', '.join(READERS)})")
    hub = HUB_NAME.fullmatch(source)
    local = _suffixes(path)[0] in READERS or Path(source.split("/")[0]).exists()
    if hub is None or local:
        raise FileNotFoundError(f"data file not found: {source} (expected a file, or a hub name owner/name)")
    return hub


def _suffixes(path: Path) -> list[str]:
    """Kind of file, kind of compression ('' for none)."""
    suffix = path.suffix.lower()
    return [Path(path.stem).suffix.lower(), suffix] if suffix in OPENERS else [suffix, ""]


def _read_file(path: Path) -> Rows:
    file_kind, packing = _suffixes(path)
    if file_kind not in READERS:
        known = ", ".join(f"*{suffix}" for suffix in READERS)
        raise DataError(str(path), f"unknown kind of file; expected {known}, also with {', '.join(OPENERS)}")
    opener = OPENERS[packing] if packing else _open_plain
    try:
        yield from READERS[file_kind](path, opener)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(str(path), f"cannot be read to its end: {type(error).__name__}: {error}") from error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_jsonl(path: Path, opener: Opener) -> Rows:
    with opener(path) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield _parse_line(line, f"{path.name}:{number}")


def _parse_line(line: bytes, where: str) -> RawRow | DataError:
    try:
        text = _decode(line, where).strip()
        value, stop = _decode_json(text, 0, where)
        if stop < len(text):
            raise DataError(where, f"more text after the object: {shown(text[stop:], _LINE_SHOWN)}")
        return RawRow(_columns(value, text, where), where)
    except DataError as error:
        return error


def _read_json(path: Path, opener: Opener) -> Rows:
    """An array of objects; a file that does not begin with ``[`` is read line by line."""
    with opener(path) as file:
        begins = file.read(64).removeprefix(_BOM).lstrip()
    if not begins.startswith(b"["):
        yield from _read_jsonl(path, opener)
        return
    with opener(path) as file:
        text = _decode(file.read().removeprefix(_BOM), path.name)
    yield from _parse_array(text, path.name)


def _parse_array(text: str, name: str) -> Rows:
    line, place = 1, _skip(text, text.index("[") + 1)
    line += text.count("\n", 0, place)
    end = text[place : place + 1] == "]"
    while not end:
        where = f"{name}:{line}"
        value, stop = _decode_json(text, place, where)
        try:
            yield RawRow(_columns(value, text[place:stop], where), where)
        except DataError as error:
            yield error
        comma = _skip(text, stop)
        mark = text[comma : comma + 1]
        if mark not in {",", "]"}:
            raise DataError(where, f"expected ',' or ']' after this row; found {shown(text[comma : comma + 80])}")
        end = mark == "]"
        line += text.count("\n", place, after := _skip(text, comma + 1))
        place = after


def _skip(text: str, place: int) -> int:
    found = _BLANK.match(text, place)
    return found.end() if found else place


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise DataError(where, f"not UTF-8: byte 0x{byte:02x} at place {error.start + 1} ({error.reason})") from None


def _decode_json(text: str, place: int, where: str) -> tuple[Any, int]:
    """The value that begins at a place of the text, and where it ends."""
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos - place + 1}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise DataError(where, f"not valid JSON: {reason}; it begins {shown(text[place : place + _LINE_SHOWN])}")


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) < len(items):
        twice = Counter(name for name, _ in items).most_common(1)[0][0]
        raise ValueError(f"key {shown(twice)} occurs twice")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _columns(value: Any, text: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(where, f"found {kind(value)}; expected an object with the columns of one row")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(where, f"unpaired surrogate \\u{ord(error.object[error.start]):04x}") from None
    return value


# ── tables and the hub ──────────────────────────────────────────────────────────────────────────────────────────────


def _read_parquet(path: Path, opener: Opener) -> Rows:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with opener(path) as file:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield RawRow(row, f"{path.name}:{number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(path.name, f"not a whole Parquet file: {shown(str(error))}") from error


def _read_hub(source: str, parts: re.Match[str]) -> Rows:
    from datasets import load_dataset

    data = load_dataset(parts["name"], revision=parts["revision"], split=parts["split"] or "train")
    for number, row in enumerate(data, start=1):
        yield RawRow(row, f"{source}:{number}")


READERS: dict[str, Callable[[Path, Opener], Rows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
OPENERS: dict[str, Opener] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
