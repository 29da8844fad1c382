"""Preparing whole splits: reading, checking and tokenizing every row before any model exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lit_align.data.formats.base import ParsedRow
from lit_align.data.formats.rankings import TIES, AllPairs, Ranking
from lit_align.data.prepared.arrow import Arrow, PairValues, records, values_of
from lit_align.data.prepared.cache import Manifest, PreparedCache, Write, build_in_memory
from lit_align.data.prepared.fingerprint import cache_key
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows, RowCounts
from lit_align.data.prepared.store import PairStore, PairTexts
from lit_align.data.prepared.workers import ShowProgress, ordered_map, without_progress
from lit_align.data.text.stop_tokens import template_stop_tokens
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair, Text, TokenizedPair

SCORES_DISAGREE = "the score columns contradict the labels"
ONLY_BLANKS_DIFFER = "chosen and rejected differ in blanks at their ends alone"
_CHUNK = 1024

Chunk = list[ParsedRow | DataError]


@dataclass(frozen=True)
class Split:
    """A prepared split: the pairs that are used, as text and as token ids at the same positions.

    Args:
        source: names of its sources.
        format: formats of its rows.
        pairs: text of each pair, with its file and line and its other columns.
        store: token ids of each pair.
        counts: what became of the rows.
        values: numeric columns of each pair.
        sources: the sources; ``source_index`` refers to them.
        encoder: the tokenizer of the ids.
    """

    source: str
    format: str
    pairs: Sequence[PreferencePair]
    store: PairStore
    counts: RowCounts
    values: PairValues
    sources: tuple[str, ...]
    encoder: Encoder

    @property
    def read(self) -> int:
        """Number of rows read, including those left out; a row with several pairs counts once per pair."""
        return self.counts.read

    @property
    def dropped(self) -> Mapping[str, int]:
        """Number of rows left out, by reason."""
        return self.counts.dropped

    @property
    def notes(self) -> Mapping[str, int]:
        """Note → number of pairs that it applies to."""
        return dict(+self.counts.notes)

    @property
    def source_index(self) -> NDArray[np.int32]:
        """Number of the source of each pair."""
        return self.values.source

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of the sides of each pair, ``[pair, side]``; NaN where the row has none."""
        return self.values.scores

    @property
    def fingerprint(self) -> str:
        """Digest of all tokens and numbers of all pairs in their order."""
        return self.store.fingerprint if self.values.plain else f"{self.store.fingerprint}-{self.values.fingerprint}"

    @property
    def honoured(self) -> frozenset[str]:
        """Of the columns that an objective must use if they are present, those that the rows have."""
        return self.values.present

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end a response, taken from the data or else from the chat template."""
        undecided = (self.pairs[row] for row in np.flatnonzero(~self.store.shows_stop_token).tolist())
        return self.store.stop_tokens | template_stop_tokens(undecided, self.encoder)

    @property
    def unpaired(self) -> bool:
        """Whether any pair has only one side."""
        return bool((self.store.lengths == 0).any())


def prepare_split(
    reader: SplitReader,
    tokenize: Tokenize,
    bad_rows: BadRows,
    cache: PreparedCache | None = None,
    workers: int | None = 0,
    watch: ShowProgress = without_progress,
) -> Split:
    """Read, check and tokenize the pairs of a split, or load them from the cache.

    Args:
        reader: reads the rows.
        tokenize: tokenizes the pairs.
        bad_rows: how to treat rows that cannot be used.
        cache: stores prepared pairs for later runs; None stores nothing.
        workers: processes that tokenize; the result is the same for any number. See ``ordered_map``.
        watch: shows the progress of reading.

    Raises:
        FileNotFoundError: a source does not exist.
        DataError: rows cannot be used, too many are dropped, or none is left.
    """

    def build(write: Write) -> Manifest:
        counts = RowCounts()
        chunks = _chunks(watch(reader, f"preparing {reader.name}"))
        for batch, chunk_counts in ordered_map(partial(_tokenize_chunk, tokenize), chunks, workers, _rows_of):
            counts.add(chunk_counts)
            if batch.num_rows:
                write(batch)
        return Manifest(reader.format_names(), counts)

    table, manifest = build_in_memory(build) if cache is None else cache.get(cache_key(reader, tokenize), build)
    manifest.counts.check(reader.name, bad_rows)
    values = values_of(table)
    return Split(
        source=reader.name,
        format=manifest.format,
        pairs=PairTexts(table, values),
        store=PairStore(table),
        counts=manifest.counts,
        values=values,
        sources=tuple(source.path for source in reader.sources),
        encoder=tokenize.encoder,
    )


def _chunks(rows: Iterable[ParsedRow | DataError]) -> Iterator[Chunk]:
    rest = iter(rows)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _tokenize_chunk(tokenize: Tokenize, rows: Chunk) -> tuple[Arrow, RowCounts]:
    """Return the records of the pairs of some rows, and the counts of the rows."""
    counts = RowCounts()
    pairs = [pair for row in rows if isinstance(row, ParsedRow) for pair in row.pairs]
    try:
        result = tokenize(pairs)
    except Exception as error:  # a chat template or a tokenizer that fails on a text
        raise _with_row(error, tokenize, pairs) from error
    counts.notes.update(result.notes)
    outcomes = iter(zip(pairs, result.outcomes, strict=True))
    kept: list[tuple[PreferencePair, TokenizedPair]] = []
    for row in rows:
        if isinstance(row, DataError):
            counts.read += 1
            counts.add_error(row)
            continue
        counts.read += max(1, len(row.pairs))
        counts.notes.update(row.notes)
        for pair, outcome in islice(outcomes, len(row.pairs)):
            if isinstance(outcome, TokenizedPair):
                kept.append((pair, outcome))
            elif outcome is None:
                counts.add_too_long(pair.where)
            else:
                counts.add_error(outcome)
    counts.kept = len(kept)
    texts = [pair for pair, _ in kept]
    counts.notes[SCORES_DISAGREE] = PairValues.of(texts).scores_disagree
    counts.notes[ONLY_BLANKS_DIFFER] = sum(map(_only_blanks_differ, texts))
    return records(texts, [ids for _, ids in kept]), counts


def _with_row(error: Exception, tokenize: Tokenize, pairs: Sequence[PreferencePair]) -> DataError:
    """Return an error that names the row at which tokenizing failed, which is found by trying each alone."""
    where = f"{pairs[0].where} to {pairs[-1].where}"
    for pair in pairs:
        try:
            tokenize([pair])
        except Exception as alone:
            where, error = pair.where, alone
            break
    return DataError(where, f"tokenizing it raised {type(error).__name__}: {shown(str(error))}")


def _only_blanks_differ(pair: PreferencePair) -> bool:
    chosen, rejected = pair.chosen, pair.rejected
    return chosen is not None and rejected is not None and _stripped(chosen) == _stripped(rejected)


def _stripped(text: Text) -> Text:
    """Return a text, or messages with the content of each, without blanks at the end."""
    if isinstance(text, str):
        return text.rstrip()
    return tuple(
        {key: value.rstrip() if key == "content" and isinstance(value, str) else value for key, value in part.items()}
        for part in text
    )


def _rows_of(chunk: Chunk) -> str:
    """Name the rows of a chunk for messages."""
    places = [pair.where for row in chunk if isinstance(row, ParsedRow) for pair in row.pairs]
    return f"{places[0]} to {places[-1]}" if places else ""


def check_ranking_settings(
    ranking: Ranking, readers: Mapping[str, SplitReader], splits: Mapping[str, Split], limit: int | None
) -> None:
    """Raise for settings of rankings that have no effect, once all sources that may hold rankings are prepared.

    Raises:
        ValueError: no source is a ranking, or ``min_gap`` is set and no ranking has scores.
    """
    changed = {"data.pairing": ranking.pairing != AllPairs(), "data.min_gap": ranking.min_gap > 0}
    keys = [key for key, differs in changed.items() if differs]
    unread = {source.format for split, reader in readers.items() if split not in splits for source in reader.sources}
    if not keys or unread & {"auto", "ranking"}:
        return
    rankings = [split for split in splits.values() if "ranking" in split.format.split(", ")]
    if not rankings:
        raise ValueError(f"{' and '.join(keys)} would have no effect: no source holds rankings")
    scored = any(np.isfinite(split.scores).any() or TIES in split.notes for split in rankings)
    if ranking.min_gap and limit is None and not scored:
        raise ValueError("data.min_gap would have no effect: no ranking has scores")
