"""Gathering reads the rows of all sources of a split, in order, and picks the pairs that the split is to have."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lit_align.data.formats.base import Format, ParsedRow, Rows
from lit_align.data.formats.columns import Columns
from lit_align.data.formats.registry import FORMATS, FormatName, detect, read_row
from lit_align.data.prepared.mixture import Source, copies, quotas
from lit_align.data.sources.base import read_rows
from lit_align.errors import DataError
from lit_align.types import PreferencePair, Text


@dataclass(frozen=True)
class Gather:
    """The pairs of a split: of one source or several, all of them or a sample, with or without the held-out ones.

    Args:
        sources: where the rows are.
        formats: name → format.
        holdout: which prompts are held out; None for none.
        held: whether these pairs are the held-out ones, or the others.
        seed: of the sample.
        limit: pairs that are used at most, the first ones; every row is read and checked all the same. None for all.

    >>> Gather.of("pairs.jsonl").name
    'pairs.jsonl'
    """

    sources: tuple[Source, ...]
    formats: Mapping[str, Format] = field(default_factory=lambda: FORMATS)
    holdout: Holdout | None = None
    held: bool = False
    seed: int = 0
    limit: int | None = None
    _layouts: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, path: str, layout: FormatName = "auto") -> Gather:
        """All pairs of one source."""
        return cls((Source(path, format=layout),))

    @property
    def name(self) -> str:
        """How messages call it."""
        return " + ".join(source.path for source in self.sources)

    def __iter__(self) -> Iterator[ParsedRow | DataError]:
        """One entry for each row of the sources, with those of its pairs that are used."""
        used = 0
        for number, source in enumerate(self.sources):
            places = itertools.count()
            for found in self._read(source):
                if isinstance(found, DataError):
                    yield found
                    continue
                reading = self._limited(self._used(found, number, places), used)
                used += len(reading.pairs)
                yield reading

    def format_names(self) -> str:
        """The formats of the sources that were read, found out from their first rows where they are not given."""
        return ", ".join(dict.fromkeys(self._layouts.values()))

    def _read(self, source: Source) -> Iterator[ParsedRow | DataError]:
        layout, rows = _with_format(_renamed(source), source.format)
        self._layouts[source.path] = layout
        for row in rows:
            try:
                yield row if isinstance(row, DataError) else read_row(row, self.formats[layout])
            except DataError as error:
                yield error

    def _used(self, found: ParsedRow, number: int, places: Iterator[int]) -> ParsedRow:
        pairs = [
            replace(pair, source=number)
            for pair, place in zip(found.pairs, places, strict=False)
            for _ in range(self._times(pair, number, place))
        ]
        return replace(found, pairs=tuple(pairs))

    def _limited(self, found: ParsedRow, used: int) -> ParsedRow:
        """What of a row is used once so many pairs are; a row that comes too late has no remarks either."""
        if self.limit is None:
            return found
        left = self.limit - used
        return replace(found, pairs=found.pairs[:left]) if left > 0 else ParsedRow(())

    def _times(self, pair: PreferencePair, number: int, place: int) -> int:
        if self.holdout is not None and (self.holdout.hash(pair.prompt) < self._threshold) is not self.held:
            return 0
        times = int(self._plan.times[number][place]) if self._sampled else self.sources[number].repeat
        return min(times, 1) if self.held else times

    @cached_property
    def _threshold(self) -> int:
        share = None if self.holdout is None else self.holdout.below
        return self._plan.threshold if share is None else share

    @property
    def _sampled(self) -> bool:
        return any(source.weight is not None for source in self.sources)

    @cached_property
    def _plan(self) -> _Plan:
        """What can only be known after all rows were read once."""
        hashes: list[list[int]] = [
            [self.holdout.hash(pair.prompt) if self.holdout else 0 for pair in _pairs(self._read(source))]
            for source in self.sources
        ]
        counts = [len(each) for each in hashes]
        found = zip(quotas(self.sources, counts), counts, strict=True)
        times = [copies(quota, count, self.seed * 1_000_003 + at) for at, (quota, count) in enumerate(found)]
        used = np.concatenate([_unsigned(h)[t > 0] for h, t in zip(hashes, times, strict=True)])
        return _Plan(times, 0 if self.holdout is None else self.holdout.threshold(used))


@dataclass(frozen=True, eq=False)
class _Plan:
    """How often each pair of each source is used, and the hash below which a prompt is held out."""

    times: Sequence[NDArray[np.uint16]]
    threshold: int


def _unsigned(values: list[int]) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def _pairs(readings: Iterator[ParsedRow | DataError]) -> Iterator[PreferencePair]:
    for reading in readings:
        if not isinstance(reading, DataError):
            yield from reading.pairs


def _renamed(source: Source) -> Rows:
    columns = Columns(source.columns or {})
    for row in read_rows(source.path):
        try:
            yield row if isinstance(row, DataError) else columns(row)
        except DataError as error:
            yield error


def _with_format(rows: Rows, layout: FormatName | None) -> tuple[str, Rows]:
    """The name of the format, found out from the first whole row where it is not given, and all the rows."""
    if layout not in (None, "auto"):
        return str(layout), rows
    seen = []
    for row in rows:
        seen.append(row)
        if not isinstance(row, DataError):
            return detect(row), itertools.chain(seen, rows)
    return "pairs", iter(seen)


_HASHES = 2**64


@dataclass(frozen=True)
class Holdout:
    """Which prompts are held out: those whose hash is below a threshold, whatever the order of the rows.

    Args:
        size: share of the prompts, above 0 and below 1; or at least so many pairs.
        seed: another seed holds out others.

    Raises:
        ValueError: the size is out of its range.
    """

    size: int | float
    seed: int = 0

    def __post_init__(self) -> None:
        counted = isinstance(self.size, int) and not isinstance(self.size, bool)
        if (counted and self.size < 1) or (not counted and not 0 < self.size < 1):
            raise ValueError(
                f"data.holdout is {self.size}; expected a share above 0 and below 1, or a number of pairs from 1"
            )

    def hash(self, prompt: Text) -> int:
        """The place of a prompt among all prompts, 0 to 2⁶⁴ − 1."""
        spelled = json.dumps([self.seed, prompt], sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest(), "big")

    @property
    def below(self) -> int | None:
        """The hash below which a prompt is held out, where a share says it; a number of pairs must see them first."""
        return int(self.size * _HASHES) if isinstance(self.size, float) else None

    def threshold(self, hashes: NDArray[np.uint64]) -> int:
        """The same for a number of pairs.

        Args:
            hashes: of the prompt of every pair.

        Raises:
            ValueError: every pair, or none, would be held out.
        """
        if self.below is not None:
            return self.below
        if self.size >= len(hashes):
            raise ValueError(f"data.holdout {self.size} would hold out all of {len(hashes)} pairs; expected fewer")
        return int(np.sort(hashes)[int(self.size) - 1]) + 1
