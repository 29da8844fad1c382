"""Counting what became of the rows of a split, and deciding whether too many are left out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, final

from lit_align.errors import DataError

OnBadRow: TypeAlias = Literal["error", "drop"]
TOO_LONG = "longer than the limits"
_SHOWN = 10
_PLACES = 3


@final
@dataclass(frozen=True)
class BadRows:
    """How to treat rows that cannot be used.

    Args:
        on_bad_row: stop with the first ten errors, or drop the rows.
        max_dropped: largest share of rows that may be dropped, 0 to 1.
    """

    on_bad_row: OnBadRow = "error"
    max_dropped: float = 0.01


@final
@dataclass
class RowCounts:
    """Counts of the rows read so far.

    Args:
        read: rows read, including those left out; a row with several pairs counts once per pair.
        kept: pairs that are used.
        first: the first errors.
        reasons: number of rows that cannot be used, by reason.
        too_long: pairs that truncation drops.
        first_too_long: where the first of these stand.
        notes: note → number of pairs that it applies to.
    """

    read: int = 0
    kept: int = 0
    first: list[DataError] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    too_long: int = 0
    first_too_long: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add_error(self, error: DataError) -> None:
        """Count a row that cannot be used."""
        if len(self.first) < _SHOWN:
            self.first.append(error)
        reason = re.split(r"[:;(]", error.reason, maxsplit=1)[0].strip()
        self.reasons[f"{error.column.split('[')[0]}: {reason}" if error.column else reason] += 1

    def add_too_long(self, where: str) -> None:
        """Count a pair that truncation drops."""
        self.too_long += 1
        self.first_too_long = [*self.first_too_long, where][:_PLACES]

    def add(self, later: RowCounts) -> None:
        """Add the counts of the rows that follow."""
        self.read += later.read
        self.kept += later.kept
        self.too_long += later.too_long
        self.first_too_long = [*self.first_too_long, *later.first_too_long][:_PLACES]
        self.first = [*self.first, *later.first][:_SHOWN]
        self.reasons.update(later.reasons)
        self.notes.update(later.notes)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows left out, by reason, the most frequent reason first."""
        return {**dict(self.reasons.most_common()), **({TOO_LONG: self.too_long} if self.too_long else {})}

    def as_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        first = [[error.where, error.reason, error.column] for error in self.first]
        return {**vars(self), "first": first, "reasons": dict(self.reasons), "notes": dict(self.notes)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RowCounts:
        """Restore what ``as_json`` returned."""
        first = [DataError(*parts) for parts in data["first"]]
        return cls(**{**data, "first": first, "reasons": Counter(data["reasons"]), "notes": Counter(data["notes"])})

    def check(self, source: str, bad_rows: BadRows) -> None:
        """Raise unless the rows that are left out are acceptable.

        Raises:
            DataError: rows cannot be used, too many are dropped, or none is left.
        """
        bad = self.reasons.total()
        out = bad + self.too_long
        count = f"{out} of {self.read} rows cannot be used" if out else ""
        if bad and bad_rows.on_bad_row == "error":
            raise DataError(source, f"{count}{self._listed()}\nCorrect them, or set data.on_bad_row to drop.")
        if not self.kept:
            raise DataError(source, f"0 of {self.read} rows are left{self._listed()}")
        if out > bad_rows.max_dropped * self.read:
            share = f"{out / self.read:.1%} is more than max_dropped ({bad_rows.max_dropped:.1%})"
            raise DataError(source, f"{count}: {share}{self._listed()}")

    def _listed(self) -> str:
        lines = [f"\n  {error}" for error in self.first]
        more = self.reasons.total() - len(self.first)
        if more > 0:
            lines.append(f"\n  … and {more} more")
        if self.too_long:
            etc = ", …" if self.too_long > len(self.first_too_long) else ""
            places = f" ({', '.join(self.first_too_long)}{etc})" if self.first_too_long else ""
            lines.append(f"\n  {self.too_long} pairs are longer than max_length or max_response_length{places}")
        return "".join(lines)
