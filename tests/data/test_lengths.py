from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from lit_align.data.length_table import table, warnings
from lit_align.data.lengths import length_report
from lit_align.data.store import PairStore
from lit_align.types import TokenizedPair, TokenizedResponse


def pair(chosen: int, rejected: int, prompt: int = 1, cut: bool = False) -> TokenizedPair:
    """A pair of the given lengths; the tokens say which pair it is."""
    return TokenizedPair(
        [prompt, 9],
        TokenizedResponse([chosen] * chosen, [True] * chosen, cut),
        TokenizedResponse([100 + rejected] * rejected, [True] * rejected),
    )


STORE = PairStore.of([pair(3, 1), pair(2, 2, prompt=2), pair(1, 3, prompt=3), pair(8, 2, prompt=4, cut=True)])


def test_the_numbers_by_hand() -> None:
    report = length_report(STORE)
    assert report.pairs == 4
    assert report.lengths.prompt.mean == 2
    assert report.lengths.chosen.mean == (3 + 2 + 1 + 8) / 4
    assert report.lengths.chosen.std == pytest.approx(np.std([3, 2, 1, 8]))
    assert report.lengths.chosen.percentiles[50] == 2.5
    assert report.lengths.rejected.percentiles[100] == 3
    assert report.lengths.gap.mean == (2 + 0 - 2 + 6) / 4
    assert report.lengths.chosen_longer == 0.5
    assert report.lengths.longer_wins.share == (2 + 0.5) / 4
    assert (report.lengths.chosen_truncated, report.lengths.rejected_truncated) == (1, 0)


def test_wilsons_interval_stays_inside_and_narrows() -> None:
    few = length_report(PairStore.of([pair(3, 1, prompt=n) for n in range(4)])).lengths.longer_wins
    many = length_report(PairStore.of([pair(3, 1, prompt=n) for n in range(400)])).lengths.longer_wins
    assert few.share == many.share == 1
    assert 0 < few.low < many.low < few.high <= 1 + 1e-12


def test_duplicates_and_contradictions() -> None:
    swapped = TokenizedPair(pair(3, 1).prompt, pair(3, 1).rejected, pair(3, 1).chosen)
    report = length_report(PairStore.of([pair(3, 1), pair(3, 1), swapped, pair(3, 1, prompt=5)]))
    assert report.duplicates == 1
    assert report.contradictions == 3
    assert report.seen_prompts is None


def test_what_evaluation_has_in_common_with_training() -> None:
    report = length_report(PairStore.of([pair(3, 1), pair(4, 1), pair(5, 1, prompt=99)]), train=STORE)
    assert report.seen_pairs == 1
    assert report.seen_prompts == 2


def test_warnings_are_for_what_is_there() -> None:
    assert warnings(length_report(STORE, train=None), step=4) == []
    assert warnings(length_report(STORE), step=5) == ["all 4 pairs are fewer than one optimizer step's 5"]
    assert warnings(length_report(STORE, train=STORE)) == [
        "4 pairs are in the training data as well; 4 pairs are used"
    ]


def test_a_report_is_plain_data() -> None:
    assert json.loads(json.dumps(length_report(STORE).as_dict()))["lengths"]["chosen"]["mean"] == 3.5


def test_the_table_has_a_column_for_each_split() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table({"train": length_report(STORE), "validation": length_report(STORE, train=STORE)}))
    text = console.export_text()
    assert "train" in text
    assert "validation" in text
    assert "62.5%" in text
    assert "pairs seen in training" in text
