"""A format says how a raw row spells its prompt and its responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from lit_align.data.formats.rows import RawRow
from lit_align.types import PreferencePair


@final
@dataclass(frozen=True)
class Reading:
    """What a row was understood as.

    Args:
        pairs: its pairs; none for a ranking without any winner.
        notes: remark → how many pairs it is about.
    """

    pairs: tuple[PreferencePair, ...]
    notes: Mapping[str, int] = field(default_factory=dict)


class Format(ABC):
    """How the rows of a file become pairs. Prompts are explicit or come from turns, never from common characters.

    Class attributes:
        columns: the columns that every row must have.
    """

    columns: ClassVar[Sequence[str]]

    @abstractmethod
    def __call__(self, row: RawRow) -> Reading:
        """The pairs of a row that has all ``columns``.

        Raises:
            DataError: the row is of another format, or incomplete.
        """


class PairFormat(Format):
    """A format with one pair in each row."""

    @abstractmethod
    def pair(self, row: RawRow) -> PreferencePair:
        """The pair of a row that has all ``columns``.

        Raises:
            DataError: the row is of another format, or incomplete.
        """

    def __call__(self, row: RawRow) -> Reading:
        """See the base class."""
        return Reading((self.pair(row),))
