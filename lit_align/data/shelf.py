"""A shelf is where the records of a split are kept while they are used: in memory, or in a folder for later runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import pyarrow as pa

from lit_align.data.records import SCHEMA, Arrow
from lit_align.data.tally import Tally


@final
@dataclass(frozen=True)
class Facts:
    """What is to be known of some records beside them.

    Args:
        format: how their rows were understood.
        tally: what became of the rows.
    """

    format: str
    tally: Tally


Write: TypeAlias = Callable[[Arrow], None]
"""Takes a batch of records."""
Fill: TypeAlias = Callable[[Write], Facts]
"""Makes all records of a split, batch after batch."""


class Shelf(ABC):
    """Where records are kept."""

    @abstractmethod
    def __call__(self, key: Callable[[], str], fill: Fill) -> tuple[Arrow, Facts]:
        """The records of a split, made only if they are not there.

        Args:
            key: says by what they are found again; it changes with anything that they depend on.
            fill: makes them.
        """


@final
@dataclass(frozen=True)
class Memory(Shelf):
    """Keeps nothing for later."""

    def __call__(self, key: Callable[[], str], fill: Fill) -> tuple[Arrow, Facts]:
        """See the base class."""
        batches: list[Arrow] = []
        facts = fill(batches.append)
        return pa.Table.from_batches(batches, SCHEMA), facts
