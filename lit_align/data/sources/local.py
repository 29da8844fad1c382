"""RawRows of local files: JSON, JSON lines, separated values, and Parquet, optionally compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import Any, final

from typing_extensions import override

from lit_align.data.formats.base import RawRow, RawRows
from lit_align.errors import DataError, kind, shown

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_SHOWN = 80
_LONGEST_FIELD = 2**31 - 1


def _open_zst(path: Path) -> BufferedIOBase:
    import pyarrow

    return BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: Mapping[str, Callable[[Path], BufferedIOBase]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _open_zst,
}


@dataclass(frozen=True)
class LocalFile:
    """A local file, possibly compressed.

    Args:
        path: its path.
        name: its name in error messages.

    >>> LocalFile(Path("pairs.jsonl.gz"), "pairs.jsonl.gz").suffix
    '.jsonl'
    """

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        """The suffix of the format, without that of the compression."""
        path = Path(self.path.stem) if self.path.suffix.lower() in OPENERS else self.path
        return path.suffix.lower()

    def open(self) -> BufferedIOBase:
        """Open the file for reading, decompressed."""
        opener = OPENERS.get(self.path.suffix.lower())
        return self.path.open("rb") if opener is None else opener(self.path)


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_lines(file: LocalFile) -> RawRows:
    """Read a file with one JSON object per line."""
    with file.open() as opened:
        for number, line in enumerate(opened, start=1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield _parse_line(line, f"{file.name}:{number}")


def _parse_line(line: bytes, where: str) -> RawRow | DataError:
    try:
        text = _decode(line, where).strip()
        value, end = _decode_json(text, 0, where)
        if end < len(text):
            raise DataError(where, f"more text after the object: {shown(text[end:], _LINE_SHOWN)}")
        return RawRow(_columns(value, text, where), where)
    except DataError as error:
        if line.strip() == b"[" or line.lstrip().startswith(b"[{"):
            return DataError(where, f"{error.reason}. If the file is one list of all rows, name it .json")
        return error


def read_array(file: LocalFile) -> RawRows:
    """Read a file with an array of JSON objects; a file that does not begin with ``[`` is read line by line."""
    with file.open() as opened:
        start = opened.read(64).removeprefix(_BOM).lstrip()
    if not start.startswith(b"["):
        yield from read_lines(file)
        return
    with file.open() as opened:
        text = _decode(opened.read().removeprefix(_BOM), file.name)
    yield from _parse_array(text, file.name)


def _parse_array(text: str, name: str) -> RawRows:
    start = _skip_blanks(text, text.index("[") + 1)
    line = 1 + text.count("\n", 0, start)
    at_end = text[start : start + 1] == "]"
    while not at_end:
        where = f"{name}:{line}"
        value, end = _decode_json(text, start, where)
        try:
            yield RawRow(_columns(value, text[start:end], where), where)
        except DataError as error:
            yield error
        comma = _skip_blanks(text, end)
        mark = text[comma : comma + 1]
        if mark not in {",", "]"}:
            raise DataError(where, f"expected ',' or ']' after this row; found {shown(text[comma : comma + 80])}")
        at_end = mark == "]"
        line += text.count("\n", start, following := _skip_blanks(text, comma + 1))
        start = following


def _skip_blanks(text: str, start: int) -> int:
    match = _BLANK.match(text, start)
    return match.end() if match else start


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise DataError(where, f"not UTF-8: byte 0x{byte:02x} at place {error.start + 1} ({error.reason})") from None


def _decode_json(text: str, start: int, where: str) -> tuple[Any, int]:
    """Return the value that begins at a position of the text, and the position of its end."""
    try:
        return _JSON.raw_decode(text, start)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos - start + 1}"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise DataError(where, f"not valid JSON: {reason}; it begins {shown(text[start : start + _LINE_SHOWN])}")


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(items)
    if len(result) < len(items):
        repeated = Counter(name for name, _ in items).most_common(1)[0][0]
        raise ValueError(f"key {shown(repeated)} occurs twice")
    return result


_JSON = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _columns(value: Any, text: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(where, f"found {kind(value)}; expected an object with the columns of one row")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(where, f"unpaired surrogate \\u{ord(error.object[error.start]):04x}") from None
    return value


# ── separated values ────────────────────────────────────────────────────────────────────────────────────────────────


@final
class _Lines(Iterator[str]):
    """The decoded lines of a file, counted, for the ``csv`` module."""

    def __init__(self, file: BufferedIOBase, name: str) -> None:
        self.file = file
        self.name = name
        self.number = 0

    @override
    def __next__(self) -> str:
        line = next(self.file)
        self.number += 1
        return _decode(line.removeprefix(_BOM) if self.number == 1 else line, f"{self.name}:{self.number}")


def read_comma(file: LocalFile) -> RawRows:
    """Read a ``.csv`` file. Every value is text, even if it looks like a number."""
    return _read_separated(file, ",")


def read_tab(file: LocalFile) -> RawRows:
    """Read a ``.tsv`` file. Every value is text."""
    return _read_separated(file, "\t")


def _read_separated(file: LocalFile, delimiter: str) -> RawRows:
    """Read a header with the column names, then rows; a quoted value may span several lines."""
    csv.field_size_limit(_LONGEST_FIELD)
    with file.open() as opened:
        lines = _Lines(opened, file.name)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{file.name}:{lines.number + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield DataError(where, f"not a row of separated values: {error}")
                continue
            except DataError as error:
                yield error
                continue
            if not values:
                continue
            if header is None:
                header = _header(values, where)
            elif len(values) == len(header):
                yield RawRow(dict(zip(header, values, strict=True)), where)
            else:
                yield DataError(where, f"found {len(values)} values; expected {len(header)}, one for each column")


def _header(names: list[str], where: str) -> list[str]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not all(names):
        reason = f"column {shown(repeated[0])} occurs twice" if repeated else "a column has no name"
        raise DataError(where, f"{reason}; expected a first line with the names of the columns")
    return names


# ── Parquet ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_parquet(file: LocalFile) -> RawRows:
    """Read a Parquet file; rows are numbered from 1."""
    import pyarrow
    from pyarrow import parquet

    try:
        with file.open() as opened:
            number = 0
            for batch in parquet.ParquetFile(opened).iter_batches(batch_size=1024):
                for row in arrow_rows(batch):
                    number += 1
                    where = f"{file.name}:{number}"
                    if isinstance(row, DataError):
                        yield DataError(where, row.reason, row.column)
                    else:
                        yield RawRow(row, where, null_filled=True)
    except pyarrow.ArrowException as error:
        raise DataError(file.name, f"not a whole Parquet file: {shown(str(error))}") from error


def arrow_rows(batch: Any) -> Iterator[dict[str, Any] | DataError]:
    """Yield the rows of a batch or table. If any value is not UTF-8, only the rows that contain one are errors."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for index in range(batch.num_rows):
            yield _arrow_row(batch, index)


def _arrow_row(batch: Any, index: int) -> dict[str, Any] | DataError:
    row: dict[str, Any] = {}
    for name in batch.schema.names:
        try:
            row[name] = batch.column(name)[index].as_py()
        except UnicodeDecodeError as error:
            return DataError("", f"not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason})", name)
    return row
