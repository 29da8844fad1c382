"""Preparing a split reads, checks and tokenizes every row of a source before any model exists."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, TypeAlias

from lit_align.data.errors import DataError
from lit_align.data.formats import FORMATS, FormatName, detect, read_pair
from lit_align.data.sources import Rows, read_rows
from lit_align.data.store import PairStore
from lit_align.data.tokenize import Tokenize
from lit_align.types import PreferencePair, TokenizedPair

OnBadRow: TypeAlias = Literal["error", "drop"]
SCORES_DISAGREE = "their score columns say the opposite of the labels"
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_SHOWN = 10
_CHUNK = 1024


@dataclass(frozen=True)
class BadRows:
    """What to do with rows that cannot be used.

    Args:
        on_bad_row: stop with the first ten of them, or go on without them.
        max_dropped: the share of rows that may be left out, 0 to 1; more is an error.
    """

    on_bad_row: OnBadRow = "error"
    max_dropped: float = 0.01


@dataclass(frozen=True)
class Split:
    """A prepared split: the pairs that are used, as text and as ids at the same positions.

    Args:
        source: where it was read from.
        format: how its rows were understood.
        pairs: the text of each pair, with its file and line and its other columns.
        store: the ids of each pair.
        read: rows of the source, also those left out.
        dropped: how many rows were left out, by reason.
        notes: how many pairs needed which remark.
    """

    source: str
    format: str
    pairs: list[PreferencePair]
    store: PairStore
    read: int
    dropped: Mapping[str, int]
    notes: Mapping[str, int]


@dataclass
class _Tally:
    """What is known of the rows so far."""

    read: int = 0
    first: list[DataError] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    too_long: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def refuse(self, error: DataError) -> None:
        """Count a row that cannot be used."""
        if len(self.first) < _SHOWN:
            self.first.append(error)
        self.reasons[_summary(error)] += 1

    @property
    def bad(self) -> int:
        return self.reasons.total()

    def dropped(self) -> dict[str, int]:
        long = {"longer than the limits": self.too_long} if self.too_long else {}
        return {**dict(self.reasons.most_common()), **long}


def prepare(source: str, layout: FormatName, tokenize: Tokenize, bad_rows: BadRows) -> Split:
    """Read, check and tokenize all rows of a source.

    Args:
        source: see ``read_rows``.
        layout: format of the rows; ``auto`` takes the one that the columns of the first row speak for.
        tokenize: pairs to ids.
        bad_rows: what to do with rows that cannot be used.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: rows cannot be used, or too many, or none is left.
    """
    tally = _Tally()
    name, rows = _with_format(read_rows(source), layout)
    kept: list[PreferencePair] = []
    tokenized: list[TokenizedPair] = []
    pairs = _good_pairs(rows, name, tally)
    while chunk := list(islice(pairs, _CHUNK)):
        result = tokenize(chunk)
        tally.notes.update(result.notes)
        for pair, outcome in zip(chunk, result.outcomes, strict=True):
            if isinstance(outcome, TokenizedPair):
                kept.append(pair)
                tokenized.append(outcome)
                tally.notes[SCORES_DISAGREE] += _scores_disagree(pair)
            elif outcome is None:
                tally.too_long += 1
            else:
                tally.refuse(outcome)
    _judge(source, tally, len(kept), bad_rows)
    return Split(source, name, kept, PairStore.of(tokenized), tally.read, tally.dropped(), dict(+tally.notes))


def _with_format(rows: Rows, layout: FormatName) -> tuple[str, Rows]:
    """The name of the format, found out from the first whole row where it is not given, and all the rows."""
    if layout != "auto":
        return layout, rows
    seen = []
    for row in rows:
        seen.append(row)
        if not isinstance(row, DataError):
            return detect(row), _chain(seen, rows)
    return "pairs", iter(seen)


def _chain(seen: Iterable[object], rows: Rows) -> Rows:
    yield from seen  # type: ignore[misc]
    yield from rows


def _good_pairs(rows: Rows, name: str, tally: _Tally) -> Iterator[PreferencePair]:
    for row in rows:
        tally.read += 1
        try:
            if isinstance(row, DataError):
                raise row
            yield read_pair(row, FORMATS[name])
        except DataError as error:
            tally.refuse(error)


def _judge(source: str, tally: _Tally, kept: int, bad_rows: BadRows) -> None:
    """Raise if the rows that are left out are not acceptable."""
    out = tally.bad + tally.too_long
    count = f"{out} of {tally.read} rows cannot be used" if out else ""
    if tally.bad and bad_rows.on_bad_row == "error":
        raise DataError(source, f"{count}{_listed(tally)}\nCorrect them, or set on_bad_row to drop.")
    if not kept:
        raise DataError(source, f"0 of {tally.read} rows are left{_listed(tally)}")
    if out > bad_rows.max_dropped * tally.read:
        share = f"{out / tally.read:.1%} is more than max_dropped ({bad_rows.max_dropped:.1%})"
        raise DataError(source, f"{count}: {share}{_listed(tally)}")


def _listed(tally: _Tally) -> str:
    lines = [f"\n  {error}" for error in tally.first]
    if tally.bad > len(tally.first):
        lines.append(f"\n  … and {tally.bad - len(tally.first)} more")
    if tally.too_long:
        lines.append(f"\n  {tally.too_long} pairs are longer than max_length or max_response_length")
    return "".join(lines)


def _scores_disagree(pair: PreferencePair) -> bool:
    """Whether the row has a score for each side and the rejected one's is higher."""
    found = [[pair.extra.get(name) for name in names] for names in _SCORES]
    return any(isinstance(a, int | float) and isinstance(b, int | float) and a < b for a, b in found)


def _summary(error: DataError) -> str:
    """The reason without what is particular to the row."""
    reason = re.split(r"[:;(]", error.reason, maxsplit=1)[0].strip()
    return f"{error.column.split('[')[0]}: {reason}" if error.column else reason
