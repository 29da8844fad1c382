"""Rows of tables: files of comma- or tab-separated values, and Parquet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Any, final

from lit_align.data.errors import DataError, shown
from lit_align.data.json_rows import BOM, decode
from lit_align.data.rows import LocalFile, RawRow, Rows

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
