"""Column maps: where a source keeps the columns that a format expects."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from lit_align.data.formats.base import RawRow
from lit_align.data.formats.fields import SCORE_COLUMNS, TEXT_COLUMNS
from lit_align.errors import DataError, kind, shown

ColumnMap: TypeAlias = dict[str, str | list[str] | None]
"""Column of a format → its path in the source; None removes the column."""

KNOWN_COLUMNS = (
    *TEXT_COLUMNS,
    *("label", "scores", "choice", "weight", "margin", "preference_probability"),
    *(name for names in SCORE_COLUMNS for name in names),
)
_IN_BRACES = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True)
class Columns:
    """Rename the columns of a row to the names that the formats expect.

    A path is a column name (``question``), a path into nested values (``info.post``, ``turns.0.text``,
    ``answers.*.text`` for every item of a list), a template with paths in braces (``"POST: {info.post}"``), or a list
    of these for a column that holds several values. Renaming a column removes it under its old name.

    Args:
        paths: column → path; None removes the column.

    Raises:
        ValueError: a name is not a column of any format.

    >>> columns = Columns({"prompt": "Q: {question}", "responses": ["good", "bad"], "margin": None})
    >>> row = RawRow({"question": "2 + 2?", "good": "4", "bad": "5", "margin": 3}, "sums.jsonl:1")
    >>> dict(columns(row).columns)
    {'question': '2 + 2?', 'prompt': 'Q: 2 + 2?', 'responses': ['4', '5']}
    """

    paths: Mapping[str, str | list[str] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, path in self.paths.items():
            if path is not None and name not in KNOWN_COLUMNS:
                hint = suggestion(name, KNOWN_COLUMNS)
                raise ValueError(f"data.columns: {name!r} is not a column of any format{hint}")

    def __call__(self, row: RawRow) -> RawRow:
        """Return the row with renamed columns.

        Raises:
            DataError: a path does not exist in the row.
        """
        if not self.paths:
            return row
        renamed = {name: _lookup(row, name, path) for name, path in self.paths.items() if path is not None}
        removed = {part for path in self.paths.values() for part in (path if isinstance(path, list) else [path])}
        removed |= set(self.paths)
        kept = {name: value for name, value in row.columns.items() if name not in removed}
        return replace(row, columns=kept | renamed)


_WON = re.compile(r"\b(win|won|chos|choos|choice|prefer|better|best|good|posit|pos\b|accept)")
_LOST = re.compile(r"\b(los|loos|reject|disprefer|unprefer|worse|worst|bad|negat|neg\b|inferior)")
"""Beginnings of words in names of columns that say on which side the column is."""
_PROMPTS = ("question", "query", "instruction", "input", "post", "context", "problem")
"""Columns in which sources keep prompts."""


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return a "did you mean" hint for a misspelt name, or an empty string.

    >>> suggestion("promt", ["prompt", "chosen"])
    "; did you mean 'prompt'?"
    """
    meant = likely_name(name, known)
    return "" if meant is None else f"; did you mean {shown(meant, 60)}?"


def likely_name(name: str, known: Sequence[str]) -> str | None:
    """Return the name that was probably meant; None if there is none.

    A name of the winning side is never taken for one of the losing side, or the other way round.

    >>> likely_name("chosen", ["lose", "win"]), likely_name("chosen", ["lose"]), likely_name("prompt", ["question"])
    ('win', None, 'question')
    """
    side = _side(name)
    fitting = [each for each in known if not side or _side(each) in ("", side)]
    close = difflib.get_close_matches(name, fitting, n=1, cutoff=0.7 if side else 0.5)
    asking = (each for each in fitting if name == "prompt" and each.lower() in _PROMPTS)
    return next(iter([*close, *(each for each in fitting if side and _side(each) == side), *asking]), None)


def _side(name: str) -> str:
    """Return ``won`` or ``lost`` if the words of a name say so, or an empty string.

    >>> _side("chosen_text"), _side("losing"), _side("prompt")
    ('won', 'lost', '')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[^a-zA-Z]+", " ", name).lower()
    won, lost = _WON.search(words), _LOST.search(words)
    return "" if (won is None) == (lost is None) else "won" if won else "lost"


def _lookup(row: RawRow, name: str, path: str | list[str]) -> Any:
    if isinstance(path, list):
        return [_lookup(row, f"{name}[{index}]", part) for index, part in enumerate(path)]
    if "{" not in path:
        return _follow(row, name, path)
    return _IN_BRACES.sub(lambda match: _follow_text(row, name, match[1]), path)


def _follow_text(row: RawRow, name: str, path: str) -> str:
    value = _follow(row, name, path)
    if not isinstance(value, str):
        raise DataError(row.where, f"found {kind(value)} in {path!r}; expected text", name)
    return value


def _follow(row: RawRow, name: str, path: str) -> Any:
    """Return the value at a path; a column whose own name contains dots takes precedence."""
    if path in row.columns:
        return row.columns[path]
    try:
        return _descend(row.columns, path.split("."))
    except _MissingStepError as error:
        of_path = "" if error.step == path else f" of {path!r}"
        reason = f"{error.step!r}{of_path} does not exist; found {error.present}{error.hint}"
        raise DataError(row.where, reason, f"columns.{name}") from None


class _MissingStepError(Exception):
    """A step of a path does not exist in a value."""

    def __init__(self, step: str, value: Any) -> None:
        super().__init__(step)
        names = [str(key) for key in value] if isinstance(value, Mapping) else []
        self.step = step
        self.present = shown(names) if isinstance(value, Mapping) else kind(value)
        self.hint = suggestion(step, names)


def _descend(value: Any, path: list[str]) -> Any:
    if not path:
        return value
    step, *rest = path
    if isinstance(value, list):
        if step == "*":
            return [_descend(item, rest) for item in value]
        if step.isdecimal() and int(step) < len(value):
            return _descend(value[int(step)], rest)
    if isinstance(value, Mapping) and step in value:
        return _descend(value[step], rest)
    raise _MissingStepError(step, value)
