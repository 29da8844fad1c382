"""Rows of JSON files: an object in each line, or an array of objects."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, final

from lit_align.data.formats.rows import LocalFile, RawRow, Rows
from lit_align.errors import DataError, kind, shown

BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_SHOWN = 80


def read_lines(source: LocalFile) -> Rows:
    """Rows of a file with an object in each line."""
    with source.open() as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield _parse_line(line, f"{source.name}:{number}")


def _parse_line(line: bytes, where: str) -> RawRow | DataError:
    try:
        text = decode(line, where).strip()
        value, stop = _decode_json(text, 0, where)
        if stop < len(text):
            raise DataError(where, f"more text after the object: {shown(text[stop:], _LINE_SHOWN)}")
        return RawRow(_columns(value, text, where), where)
    except DataError as error:
        return error


def read_array(source: LocalFile) -> Rows:
    """Rows of an array of objects; a file that does not begin with ``[`` is read line by line."""
    with source.open() as file:
        begins = file.read(64).removeprefix(BOM).lstrip()
    if not begins.startswith(b"["):
        yield from read_lines(source)
        return
    with source.open() as file:
        text = decode(file.read().removeprefix(BOM), source.name)
    yield from _parse_array(text, source.name)


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


def decode(data: bytes, where: str) -> str:
    """The text of some bytes.

    Raises:
        DataError: they are not UTF-8.
    """
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


_LONGEST_FIELD = 2**31 - 1


@final
class _Lines(Iterator[str]):
    """The lines of a file as text, counted, for the ``csv`` module; what is not UTF-8 stops it."""

    def __init__(self, file: BufferedIOBase, name: str) -> None:
        self.file = file
        self.name = name
        self.number = 0

    def __next__(self) -> str:
        line = next(self.file)
        self.number += 1
        return decode(line.removeprefix(BOM) if self.number == 1 else line, f"{self.name}:{self.number}")


def read_comma(source: LocalFile) -> Rows:
    """Rows of a ``.csv`` file; every value is text, also where it looks like a number."""
    return _read_separated(source, ",")


def read_tab(source: LocalFile) -> Rows:
    """Rows of a ``.tsv`` file; every value is text."""
    return _read_separated(source, "\t")


def _read_separated(source: LocalFile, delimiter: str) -> Rows:
    """A header with the names of the columns, then rows; a quoted value may go over several lines."""
    csv.field_size_limit(_LONGEST_FIELD)
    with source.open() as file:
        lines = _Lines(file, source.name)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{source.name}:{lines.number + 1}"
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
            else:
                yield _row(header, values, where)


def _header(names: list[str], where: str) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not all(names):
        reason = f"column {shown(twice[0])} occurs twice" if twice else "a column has no name"
        raise DataError(where, f"{reason}; expected a first line with the names of the columns")
    return names


def _row(header: list[str], values: list[str], where: str) -> RawRow | DataError:
    if len(values) != len(header):
        return DataError(where, f"found {len(values)} values; expected {len(header)}, one for each column")
    return RawRow(dict(zip(header, values, strict=True)), where)


def read_parquet(source: LocalFile) -> Rows:
    """Rows of a Parquet file, numbered from 1."""
    import pyarrow
    from pyarrow import parquet

    try:
        with source.open() as file:
            number = 0
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=1024):
                for row in _records(batch):
                    number += 1
                    where = f"{source.name}:{number}"
                    yield (
                        DataError(where, row.reason, row.column) if isinstance(row, DataError) else RawRow(row, where)
                    )
    except pyarrow.ArrowException as error:
        raise DataError(source.name, f"not a whole Parquet file: {shown(str(error))}") from error


def _records(batch: Any) -> Iterator[dict[str, Any] | DataError]:
    """The rows of a batch; what is no text in one of them is told of that one."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for place in range(batch.num_rows):
            yield _record(batch, place)


def _record(batch: Any, place: int) -> dict[str, Any] | DataError:
    found: dict[str, Any] = {}
    for name in batch.schema.names:
        try:
            found[name] = batch.column(name)[place].as_py()
        except UnicodeDecodeError as error:
            return DataError("", f"not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason})", name)
    return found
