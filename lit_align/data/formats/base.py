"""Raw rows, and the interface that turns a raw row into preference pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, final

from typing_extensions import override

from lit_align.errors import DataError
from lit_align.types import PreferencePair


@dataclass(frozen=True)
class RawRow:
    """One row of a source, before its columns are interpreted.

    Args:
        columns: column name → value.
        where: ``file:line``, for error messages.
        null_filled: whether missing keys of nested values may be null, as in Arrow, where all rows have the same keys.
    """

    columns: Mapping[str, Any]
    where: str
    null_filled: bool = False


RawRows: TypeAlias = Iterator[RawRow | DataError]
"""Rows in the order of the source. A line that cannot be parsed is yielded as a ``DataError``."""


@final
@dataclass(frozen=True)
class ParsedRow:
    """The pairs of one row.

    Args:
        pairs: the pairs; empty for a ranking without a winner.
        notes: note → number of pairs that it applies to.
    """

    pairs: tuple[PreferencePair, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


class Format(ABC):
    """Interface for parsing the rows of a source into pairs.

    The prompt is always explicit: a column of its own, or the turns before the response. It is never inferred from a
    common prefix of two texts.

    Class attributes:
        columns: columns that every row must have.
    """

    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def __call__(self, row: RawRow) -> ParsedRow:
        """Parse a row that has all ``columns``.

        Raises:
            DataError: the row has another format, or is incomplete.
        """


class PairFormat(Format):
    """A format with exactly one pair per row."""

    @abstractmethod
    def pair(self, row: RawRow) -> PreferencePair:
        """Return the pair of a row that has all ``columns``.

        Raises:
            DataError: the row has another format, or is incomplete.
        """

    @override
    def __call__(self, row: RawRow) -> ParsedRow:
        return ParsedRow((self.pair(row),))
