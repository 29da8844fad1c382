"""A column map says under which names a source keeps what a format asks for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lit_align.data.formats.fields import SCORE_COLUMNS, TEXT_COLUMNS
from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, kind, shown

ColumnMap: TypeAlias = dict[str, str | list[str] | None]
"""Name that a format knows → where the source keeps it; None leaves a column out."""

KNOWN = (
    *TEXT_COLUMNS,
    *("label", "scores", "choice", "weight", "margin", "preference_probability"),
    *(name for names in SCORE_COLUMNS for name in names),
)
_IN_BRACES = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """Gives a row the column names that formats know.

    Where the source keeps a column is its name (``question``), a path into it (``info.post``, ``turns.0.text``,
    ``answers.*.text`` for all of a list), a text with such paths in braces (``"POST: {info.post}"``), or a list of
    these for a column that holds several values. A column that is renamed has its old name no more.

    Args:
        paths: name → where it is; None leaves a column out.

    >>> columns = Columns({"prompt": "Q: {question}", "responses": ["good", "bad"], "margin": None})
    >>> row = RawRow({"question": "2 + 2?", "good": "4", "bad": "5", "margin": 3}, "sums.jsonl:1")
    >>> dict(columns(row).columns)
    {'question': '2 + 2?', 'prompt': 'Q: 2 + 2?', 'responses': ['4', '5']}
    """

    paths: Mapping[str, str | list[str] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, path in self.paths.items():
            if path is not None and name not in KNOWN:
                raise ValueError(f"data.columns: {name!r} is no column of any format{suggestion(name, KNOWN)}")

    def __call__(self, row: RawRow) -> RawRow:
        """The row under the names of the map.

        Raises:
            DataError: the row has no such column.
        """
        if not self.paths:
            return row
        found = {name: _find(row, name, path) for name, path in self.paths.items() if path is not None}
        used = {each for path in self.paths.values() for each in (path if isinstance(path, list) else [path])}
        gone = used | set(self.paths)
        return RawRow({name: part for name, part in row.columns.items() if name not in gone} | found, row.where)


def suggestion(name: str, known: tuple[str, ...] | list[str]) -> str:
    """Which of the known names was meant, perhaps.

    >>> suggestion("promt", ["prompt", "chosen"])
    "; did you mean 'prompt'?"
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {shown(close[0], 60)}?" if close else ""


def _find(row: RawRow, name: str, path: str | list[str]) -> Any:
    if isinstance(path, list):
        return [_find(row, f"{name}[{place}]", each) for place, each in enumerate(path)]
    if "{" not in path:
        return _follow(row, name, path)
    return _IN_BRACES.sub(lambda part: _text(row, name, part[1]), path)


def _text(row: RawRow, name: str, path: str) -> str:
    value = _follow(row, name, path)
    if not isinstance(value, str):
        raise DataError(row.where, f"found {kind(value)} in {path!r}; expected text", name)
    return value


def _follow(row: RawRow, name: str, path: str) -> Any:
    """The value at the end of a path; a column whose own name has dots in it comes first."""
    if path in row.columns:
        return row.columns[path]
    try:
        return _step(row.columns, path.split("."))
    except _NotThereError as error:
        whole = "" if error.step == path else f" of {path!r}"
        reason = f"{error.step!r}{whole} is not there; found {error.found}{error.hint}"
        raise DataError(row.where, reason, f"columns.{name}") from None


class _NotThereError(Exception):
    """A step of a path leads nowhere."""

    def __init__(self, step: str, value: Any) -> None:
        super().__init__(step)
        names = [str(key) for key in value] if isinstance(value, Mapping) else []
        self.step = step
        self.found = shown(names) if isinstance(value, Mapping) else kind(value)
        self.hint = suggestion(step, names)


def _step(value: Any, path: list[str]) -> Any:
    if not path:
        return value
    step, *rest = path
    if isinstance(value, list):
        if step == "*":
            return [_step(item, rest) for item in value]
        if step.isdecimal() and int(step) < len(value):
            return _step(value[int(step)], rest)
    if isinstance(value, Mapping) and step in value:
        return _step(value[step], rest)
    raise _NotThereError(step, value)
