"""Preparing a split reads, checks and tokenizes every row of a source before any model exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lit_align.data.formats.base import ParsedRow
from lit_align.data.prepared.arrow import Arrow, PairTexts, records, values_of
from lit_align.data.prepared.cache import Facts, Memory, Shelf, Write
from lit_align.data.prepared.fingerprint import content_key
from lit_align.data.prepared.read_split import Gather
from lit_align.data.prepared.row_counts import BadRows, Tally
from lit_align.data.prepared.store import PairStore
from lit_align.data.prepared.values import PairValues, ValuedPairs, Values
from lit_align.data.prepared.workers import Watch, ordered_map, unwatched
from lit_align.data.text.stop_tokens import template_stop_tokens
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import DataError
from lit_align.types import PreferencePair, TokenizedPair

__all__ = ["SCORES_DISAGREE", "BadRows", "Split", "prepare"]

SCORES_DISAGREE = "their score columns say the opposite of the labels"
_CHUNK = 1024

Readings = list[ParsedRow | DataError]


@dataclass(frozen=True)
class Split:
    """A prepared split: the pairs that are used, as text and as ids at the same positions.

    Args:
        source: where it was read from.
        format: how its rows were understood.
        pairs: the text of each pair, with its file and line and its other columns.
        store: the ids of each pair.
        read: rows of the source, also those left out; a row of several pairs counts as so many.
        dropped: how many rows were left out, by reason.
        notes: how many pairs needed which remark.
        values: the numbers that the rows have for each pair.
        sources: the names of the sources; ``source_index`` says which is a pair's.
        encoder: the tokenizer that the ids are from.
    """

    source: str
    format: str
    pairs: Sequence[PreferencePair]
    store: PairStore
    read: int
    dropped: Mapping[str, int]
    notes: Mapping[str, int]
    values: PairValues
    sources: tuple[str, ...]
    encoder: Encoder

    @property
    def source_index(self) -> NDArray[np.int32]:
        """Number of the source of each pair."""
        return self.values.source

    @property
    def scores(self) -> Values:
        """Score of each side of each pair, ``[pair, side]``; NaN where the row has none."""
        return self.values.scores

    @property
    def examples(self) -> Sequence[TokenizedPair]:
        """The pairs as batches are made of them: ids, and the numbers that an objective may use."""
        return self.store if self.values.plain else ValuedPairs(self.store, self.values)

    @property
    def fingerprint(self) -> str:
        """Changes when any token or number of any pair does, or their order."""
        return self.store.fingerprint if self.values.plain else f"{self.store.fingerprint}-{self.values.fingerprint}"

    @property
    def honoured(self) -> frozenset[str]:
        """Of the columns that an objective must honour, those that the rows have."""
        return self.values.present

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """What ends a response: see ``ends.end_tokens``."""
        silent = (self.pairs[place] for place in np.flatnonzero(~self.store.ended).tolist())
        return self.store.end_tokens | template_stop_tokens(silent, self.encoder)

    @property
    def unpaired(self) -> bool:
        """Whether a pair has one side only."""
        return bool((self.store.lengths == 0).any())


def prepare(
    gather: Gather,
    tokenize: Tokenize,
    bad_rows: BadRows,
    shelf: Shelf = Memory(),
    workers: int | None = 0,
    watch: Watch = unwatched,
) -> Split:
    """Read, check and tokenize the pairs of a split.

    Args:
        gather: where they come from.
        tokenize: pairs to ids.
        bad_rows: what to do with rows that cannot be used.
        shelf: where the prepared pairs are kept.
        workers: processes that tokenize; the pairs are the same for any number. See ``ordered_map``.
        watch: shows how far the rows are read.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: rows cannot be used, or too many, or none is left.
    """

    def fill(write: Write) -> Facts:
        """Make the records of all pairs, batch after batch."""
        tally = Tally()
        chunks = _chunks(watch(gather, f"preparing {gather.name}"))
        for batch, found in ordered_map(partial(_tokenized, tokenize), chunks, workers):
            tally.add(found)
            if batch.num_rows:
                write(batch)
        return Facts(gather.format_names(), tally)

    table, facts = shelf(partial(content_key, gather, tokenize), fill)
    facts.tally.judge(gather.name, bad_rows)
    values = values_of(table)
    return Split(
        source=gather.name,
        format=facts.format,
        pairs=PairTexts(table, values),
        store=PairStore(table),
        read=facts.tally.read,
        dropped=facts.tally.dropped,
        notes=dict(+facts.tally.notes),
        values=values,
        sources=tuple(source.path for source in gather.sources),
        encoder=tokenize.encoder,
    )


def _chunks(readings: Iterable[ParsedRow | DataError]) -> Iterator[Readings]:
    rest = iter(readings)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _tokenized(tokenize: Tokenize, readings: Readings) -> tuple[Arrow, Tally]:
    """The records of the pairs of some rows, and what became of the rows."""
    tally = Tally()
    good = [pair for reading in readings if isinstance(reading, ParsedRow) for pair in reading.pairs]
    result = tokenize(good)
    tally.notes.update(result.notes)
    outcomes = iter(zip(good, result.outcomes, strict=True))
    kept: list[tuple[PreferencePair, TokenizedPair]] = []
    for reading in readings:
        if isinstance(reading, DataError):
            tally.read += 1
            tally.refuse(reading)
        else:
            tally.read += max(1, len(reading.pairs))
            tally.notes.update(reading.notes)
            kept += _kept(islice(outcomes, len(reading.pairs)), tally)
    tally.kept = len(kept)
    batch = records([pair for pair, _ in kept], [ids for _, ids in kept])
    tally.notes[SCORES_DISAGREE] = PairValues.of([pair for pair, _ in kept]).scores_disagree
    return batch, tally


def _kept(
    outcomes: Iterator[tuple[PreferencePair, TokenizedPair | DataError | None]], tally: Tally
) -> Iterator[tuple[PreferencePair, TokenizedPair]]:
    for pair, outcome in outcomes:
        if isinstance(outcome, TokenizedPair):
            yield pair, outcome
        elif outcome is None:
            tally.too_long += 1
        else:
            tally.refuse(outcome)
