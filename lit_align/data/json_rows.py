"""Rows of JSON files: an object in each line, or an array of objects."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from lit_align.data.errors import DataError, kind, shown
from lit_align.data.rows import LocalFile, RawRow, Rows

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
