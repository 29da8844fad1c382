"""Reading the pairs of a split from its sources: renamed columns, mixtures, held-out prompts, and limits."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_align.data.formats.base import Format, ParsedRow, RawRows
from lit_align.data.formats.columns import Columns
from lit_align.data.formats.registry import FORMATS, FormatName, detect, read_row
from lit_align.data.prepared.mixture import Source, copies, quotas
from lit_align.data.sources.base import read_source
from lit_align.errors import DataError
from lit_align.types import PreferencePair, Text

_HASHES = 2**64


@dataclass(frozen=True)
class SplitReader:
    """Iterates over the rows of a split's sources, in order, with the pairs that the split uses.

    Args:
        sources: the sources.
        formats: format name → format.
        holdout: which prompts are held out for validation; None for none.
        held_out: read the held-out pairs instead of the others.
        seed: seed of mixtures.
        limit: maximum number of pairs; every row is read and checked all the same. None for no limit.

    >>> SplitReader.of("pairs.jsonl").name
    'pairs.jsonl'
    """

    sources: tuple[Source, ...]
    formats: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    holdout: Holdout | None = None
    held_out: bool = False
    seed: int = 0
    limit: int | None = None
    _detected: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, path: str, format_name: FormatName = "auto") -> SplitReader:
        """Return a reader of all pairs of one source."""
        return cls((Source(path, format=format_name),))

    @property
    def name(self) -> str:
        """Name of the sources in error messages."""
        return " + ".join(source.path for source in self.sources)

    def __iter__(self) -> Iterator[ParsedRow | DataError]:
        """Yield one entry for each row, with those of its pairs that are used."""
        used = 0
        for number, source in enumerate(self.sources):
            places = itertools.count()
            for row in self._read(source):
                if not isinstance(row, DataError):
                    row = self._limited(self._selected(row, number, places), used)
                    used += len(row.pairs)
                yield row

    def format_names(self) -> str:
        """Return the formats of the sources read so far, as configured or detected."""
        return ", ".join(dict.fromkeys(self._detected.values()))

    def _read(self, source: Source) -> Iterator[ParsedRow | DataError]:
        format_name, rows = _with_format(_renamed(source), source.format)
        self._detected[source.path] = format_name
        for row in rows:
            try:
                yield row if isinstance(row, DataError) else read_row(row, self.formats[format_name])
            except DataError as error:
                yield error

    def _selected(self, row: ParsedRow, number: int, places: Iterator[int]) -> ParsedRow:
        """Repeat or remove the pairs of a row; ``places`` counts the pairs of its source."""
        pairs = [
            replace(pair, source=number)
            for pair, place in zip(row.pairs, places, strict=False)
            for _ in range(self._times(pair, number, place))
        ]
        return replace(row, pairs=tuple(pairs))

    def _limited(self, row: ParsedRow, used: int) -> ParsedRow:
        """Apply the limit; a row after it loses its notes too."""
        if self.limit is None:
            return row
        left = self.limit - used
        return replace(row, pairs=row.pairs[:left]) if left > 0 else ParsedRow(())

    def _times(self, pair: PreferencePair, number: int, place: int) -> int:
        if self.holdout is not None and (self.holdout.hash(pair.prompt) < self._threshold) is not self.held_out:
            return 0
        weighted = any(source.weight is not None for source in self.sources)
        times = int(self._plan.times[number][place]) if weighted else self.sources[number].repeat
        return min(times, 1) if self.held_out else times

    @cached_property
    def _threshold(self) -> int:
        below = None if self.holdout is None else self.holdout.below
        return self._plan.threshold if below is None else below

    @cached_property
    def _plan(self) -> _Plan:
        """Determine what depends on all rows, which are read once for it."""
        hashes = [
            [self.holdout.hash(pair.prompt) if self.holdout else 0 for pair in _pairs(self._read(source))]
            for source in self.sources
        ]
        counts = [len(source_hashes) for source_hashes in hashes]
        times = [
            copies(quota, count, self.seed * 1_000_003 + number)
            for number, (quota, count) in enumerate(zip(quotas(self.sources, counts), counts, strict=True))
        ]
        used = np.concatenate(
            [np.array(values, np.uint64)[repeats > 0] for values, repeats in zip(hashes, times, strict=True)]
        )
        return _Plan(times, 0 if self.holdout is None else self.holdout.threshold(used))


class _Plan(NamedTuple):
    """How often each pair of each source is used, and the hash below which a prompt is held out."""

    times: Sequence[NDArray[np.uint16]]
    threshold: int


def _pairs(rows: Iterator[ParsedRow | DataError]) -> Iterator[PreferencePair]:
    for row in rows:
        if not isinstance(row, DataError):
            yield from row.pairs


def _renamed(source: Source) -> RawRows:
    columns = Columns(source.columns or {})
    for row in read_source(source.path):
        try:
            yield row if isinstance(row, DataError) else columns(row)
        except DataError as error:
            yield error


def _with_format(rows: RawRows, format_name: FormatName | None) -> tuple[str, RawRows]:
    """Return the name of the format, detected from the first valid row unless configured, and all rows."""
    if format_name not in (None, "auto"):
        return str(format_name), rows
    seen = []
    for row in rows:
        seen.append(row)
        if not isinstance(row, DataError):
            return detect(row), itertools.chain(seen, rows)
    return "pairs", iter(seen)


@dataclass(frozen=True)
class Holdout:
    """The prompts that are held out: those whose hash is below a threshold, whatever the order of the rows.

    Args:
        size: share of the prompts, above 0 and below 1; or a minimum number of pairs.
        seed: seed of the hash.

    Raises:
        ValueError: the size is out of range.
    """

    size: int | float
    seed: int = 0

    def __post_init__(self) -> None:
        is_count = isinstance(self.size, int) and not isinstance(self.size, bool)
        if (is_count and self.size < 1) or (not is_count and not 0 < self.size < 1):
            raise ValueError(
                f"data.holdout is {self.size}; expected a share above 0 and below 1, or a number of pairs from 1"
            )

    def hash(self, prompt: Text) -> int:
        """Return the hash of a prompt, 0 to 2⁶⁴ − 1."""
        content = json.dumps([self.seed, prompt], sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")

    @property
    def below(self) -> int | None:
        """The threshold for a share; None for a number of pairs, which depends on all prompts."""
        return int(self.size * _HASHES) if isinstance(self.size, float) else None

    def threshold(self, hashes: NDArray[np.uint64]) -> int:
        """Return the threshold, for a share or for a number of pairs.

        Args:
            hashes: hash of the prompt of every pair.

        Raises:
            ValueError: every pair would be held out.
        """
        if self.below is not None:
            return self.below
        if self.size >= len(hashes):
            raise ValueError(f"data.holdout {self.size} would hold out all of {len(hashes)} pairs; expected fewer")
        return int(np.sort(hashes)[int(self.size) - 1]) + 1
