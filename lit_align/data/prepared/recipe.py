"""A recipe says how the pairs of every split come from their sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_align.data.formats.columns import ColumnMap
from lit_align.data.formats.conversations import Score
from lit_align.data.formats.rankings import TIES, AllPairs, BestVersusRest, Pairing, PairingName, RandomPair, Ranking
from lit_align.data.formats.registry import FormatName, formats
from lit_align.data.prepared.cache import shelf_of
from lit_align.data.prepared.mixture import Source
from lit_align.data.prepared.prepare import Split, prepare
from lit_align.data.prepared.read_split import Gather, Holdout
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.prepared.workers import unwatched, watched
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut, CutPrompts, Drop, PromptSide, Truncation
from lit_align.errors import DataError, check_range

HELD_OUT = ("train", "validation")
PAIRINGS: Mapping[str, Callable[[int], Pairing]] = {
    "all": lambda seed: AllPairs(),
    "best_vs_rest": lambda seed: BestVersusRest(),
    "random_one": RandomPair,
}
TRUNCATIONS: Mapping[str, Callable[..., Truncation]] = {"cut": Cut, "cut_prompts": CutPrompts, "drop": Drop}


@dataclass(frozen=True)
class Recipe:
    """How the pairs of every split come from their sources; the same recipe gives the same pairs.

    Args:
        sources: split → where its rows come from.
        columns: where a source keeps its columns, unless it says so itself.
        format: how its rows are spelled, unless it says so itself.
        ranking: what becomes of rankings.
        score: which turns of a response are scored.
        limit: training pairs that are used at most, the first ones; None for all.
        holdout: what is taken out of the training source to validate on, if anything.
        truncation: what happens to a pair that is too long.
        quality_prompt: the text p of prompted pairs.
        bad_rows: what to do with rows that cannot be used.
        tokenize_workers: processes that tokenize; None chooses.
        cache: folder that keeps prepared pairs; ``auto`` chooses, None keeps nothing.
        seed: of mixtures, holdouts and random pairs.
    """

    sources: Mapping[str, Sequence[Source]]
    columns: ColumnMap
    format: FormatName
    ranking: Ranking
    score: Score
    limit: int | None
    holdout: Holdout | None
    truncation: Truncation
    quality_prompt: str
    bad_rows: BadRows
    tokenize_workers: int | None
    cache: str | None
    seed: int

    def prepare(self, split: str, encoder: Encoder, prompted: bool, shows_progress: bool) -> Split:
        """Read, check and tokenize a split.

        Args:
            split: its name.
            encoder: the tokenizer.
            prompted: build the prompts under p ⊕ x as well.
            shows_progress: draw a bar.

        Raises:
            FileNotFoundError: a source is not there.
            DataError: rows cannot be used; the message lists the first ten by file and line.
        """
        tokenize = Tokenize(encoder, self.truncation, self.quality_prompt if prompted else None, self.score)
        gather, watch = self._gather(split), watched if shows_progress else unwatched
        try:
            shelf = shelf_of(self.cache, gather)
            return prepare(gather, tokenize, self.bad_rows, shelf, self.tokenize_workers, watch)
        except DataError as error:
            raise DataError(f"data.{split}: {error.where}", error.reason, error.column) from error.__cause__
        except FileNotFoundError as error:
            raise FileNotFoundError(f"data.{split}: {error}") from None

    def check_ranking(self, splits: Mapping[str, Split]) -> None:
        """Raise for settings of rankings that change nothing, if so much is known of the sources already.

        Args:
            splits: the splits that are prepared.

        Raises:
            ValueError: no source is a ranking, or there is a ``min_gap`` and no ranking has scores.
        """
        changed = {"data.pairing": self.ranking.pairing != AllPairs(), "data.min_gap": self.ranking.min_gap > 0}
        keys = [key for key, differs in changed.items() if differs]
        unread = {
            source.format or self.format
            for split, sources in self.sources.items()
            for source in (() if split in splits else sources)
        }
        if not keys or unread & {"auto", "ranking"}:
            return
        rankings = [split for split in splits.values() if "ranking" in split.format.split(", ")]
        if not rankings:
            raise ValueError(f"{' and '.join(keys)} would have no effect: no source holds rankings")
        scored = any(np.isfinite(split.scores).any() or TIES in split.notes for split in rankings)
        if self.ranking.min_gap and self.limit is None and not scored:
            raise ValueError("data.min_gap would have no effect: no ranking has scores")

    def _gather(self, split: str) -> Gather:
        """Where the pairs of a split come from, what a source leaves open filled in."""
        return Gather(
            sources=tuple(source.filled(self.columns, self.format) for source in self.sources[split]),
            formats=formats(self.ranking, self.score),
            holdout=self.holdout if split in HELD_OUT else None,
            held=split == "validation",
            seed=self.seed,
            limit=self.limit if split == "train" else None,
        )


def ranking_of(pairing: PairingName, min_gap: float, seed: int) -> Ranking:
    """What becomes of rankings.

    Raises:
        ValueError: a number is out of its range.
    """
    check_range("data.min_gap", min_gap, 0)
    return Ranking(PAIRINGS[pairing](seed), min_gap)


@dataclass(frozen=True)
class Room:
    """The lengths that a pair may have.

    Args:
        max_length: tokens of prompt and response together.
        max_response: tokens of a response at most.
        min_response: tokens that are kept for a response.
        truncate_prompt: the side a prompt is cut from.
    """

    max_length: int
    max_response: int | None
    min_response: int | None
    truncate_prompt: PromptSide

    def truncation(self, kind: Literal["cut", "cut_prompts", "drop"]) -> Truncation:
        """What happens to a pair that does not fit.

        Raises:
            ValueError: a number is out of its range, or would have no effect.
        """
        check_range("data.max_length", self.max_length, 4)
        check_range("data.max_response_length", self.max_response, 1, self.max_length - 1)
        check_range("data.min_response", self.min_response, 1, self.max_response or self.max_length - 1)
        if kind == "drop" and (self.min_response is not None or self.truncate_prompt != "left"):
            raise ValueError("data.min_response and data.truncate_prompt have no effect with data.truncation drop")
        return TRUNCATIONS[kind](self.max_length, self.max_response, self.min_response, self.truncate_prompt)
