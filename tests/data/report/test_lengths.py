from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.prepared.store import PairStore
from lit_align.data.report.lengths import Marks, PairLengths, length_report, matched_beta
from lit_align.types import TokenizedPair, TokenizedResponse


def response(first: int, length: int, cut: bool = False) -> TokenizedResponse:
    return TokenizedResponse([first] * length, [True] * length, cut)


NOTHING = response(0, 0)


def pair(chosen: int, rejected: int, prompt: int = 1, cut: bool = False) -> TokenizedPair:
    """Return a pair with given lengths, whose tokens identify it."""
    return TokenizedPair([prompt, 9], response(chosen, chosen, cut), response(100 + rejected, rejected))


def lengths(pairs: list[TokenizedPair], marks: Marks = Marks()) -> PairLengths:
    return length_report(PairStore.of(pairs), marks=marks).lengths


STORE = PairStore.of([pair(3, 1), pair(2, 2, prompt=2), pair(1, 3, prompt=3), pair(8, 2, prompt=4, cut=True)])


def test_the_numbers_by_hand() -> None:
    report = length_report(STORE)
    found = report.lengths
    assert report.pairs == report.rows == 4
    assert found.prompt.mean == 2
    assert found.chosen.mean == (3 + 2 + 1 + 8) / 4
    assert found.chosen.percentiles[50] == 2.5
    assert found.rejected.percentiles[100] == 3
    assert found.rejected.histogram.edges == [1, 2, 3, 4]
    assert found.rejected.histogram.counts == (1, 2, 1)
    assert found.gap.mean == (2 + 0 - 2 + 6) / 4
    assert found.chosen_longer == 0.5
    assert found.equally_long == 0.25
    assert found.longer_wins.share == (2 + 0.5) / 4
    assert (found.chosen_truncated, found.rejected_truncated) == (1, 0)
    assert (found.scored, found.score_correlation) == (0, None)


some = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


@given(some)
def test_the_numbers_by_plain_loops(rows: list[tuple[int, int]]) -> None:
    found = lengths([pair(*row, prompt=200 + number) for number, row in enumerate(rows)])
    gaps = [chosen - rejected for chosen, rejected in rows]
    assert found.chosen.mean == pytest.approx(sum(chosen for chosen, _ in rows) / len(rows))
    assert found.gap.mean == pytest.approx(sum(gaps) / len(rows))
    assert found.gap.mean == pytest.approx(found.chosen.mean - found.rejected.mean, abs=1e-9)
    assert found.chosen_longer == sum(gap > 0 for gap in gaps) / len(rows)
    assert found.longer_wins.share == pytest.approx(sum((gap > 0) + (gap == 0) / 2 for gap in gaps) / len(rows))
    assert found.chosen.histogram.width == found.rejected.histogram.width, "one grid, to be laid over each other"


@given(some)
def test_swapping_the_sides_swaps_the_numbers(rows: list[tuple[int, int]]) -> None:
    one = lengths([pair(*row) for row in rows])
    other = lengths([pair(*reversed(row)) for row in rows])
    assert (one.chosen, one.rejected) == (other.rejected, other.chosen)
    assert one.gap.mean == -other.gap.mean
    assert one.longer_wins.share == pytest.approx(1 - other.longer_wins.share)
    assert one.matched_beta == other.matched_beta


# ── scores, sources, sides ──────────────────────────────────────────────────────────────────────────────────────────


def test_scores_that_follow_the_length() -> None:
    pairs = [pair(n, 5, prompt=n) for n in (1, 4, 7, 9)]
    scores = np.array([[0.1 * n, 0.5] for n in (1, 4, 7, 9)])
    assert lengths(pairs, Marks(scores)).score_correlation == pytest.approx(1)
    assert lengths(pairs, Marks(scores[:, ::-1])).score_correlation == pytest.approx(-1)


def test_pairs_without_scores_do_not_count_towards_the_correlation() -> None:
    pairs = [pair(n, 5, prompt=n) for n in (1, 4, 7, 9)]
    scores = np.array([[1.0, 0.0], [np.nan, 0.0], [0.0, np.inf], [2.0, 0.0]])
    found = lengths(pairs, Marks(scores))
    assert found.scored == 2
    assert found.score_correlation == pytest.approx(1)


def test_each_source_by_itself() -> None:
    marks = Marks(source=np.array([0, 1, 1, 2]), names=("a.jsonl", "b.jsonl", "a.jsonl"))
    report = length_report(STORE, marks=marks)
    assert list(report.sources) == ["a.jsonl", "b.jsonl"]
    assert report.sources["a.jsonl"].chosen.mean == (3 + 8) / 2
    assert report.sources["b.jsonl"].gap.mean == (0 - 2) / 2
    assert sum(source.pairs for source in report.sources.values()) == report.pairs


def test_one_source_is_the_split() -> None:
    assert length_report(STORE, marks=Marks(source=np.zeros(4, dtype=int), names=("a.jsonl",))).sources == {}


def test_a_source_without_pairs_and_sides_that_are_not_there() -> None:
    alone = TokenizedPair([1, 9], response(5, 4), response(6, 0))
    other = TokenizedPair([2, 9], response(5, 0), response(6, 2))
    marks = Marks(source=np.zeros(2, dtype=int), names=("a.jsonl", "b.jsonl"))
    report = length_report(PairStore.of([alone, other]), marks=marks)
    found = report.lengths
    assert (found.chosen.count, found.rejected.count, found.gap.count) == (1, 1, 0)
    assert (found.chosen.mean, found.rejected.mean) == (4, 2)
    assert found.matched_beta == pytest.approx(0.1 * 3)
    assert report.sources["b.jsonl"].pairs == 0
    json.dumps(report.as_dict(), allow_nan=False)


# ── the same beta ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_matched_beta_is_exact_at_equal_lengths() -> None:
    """Averaged DPO(β) = DPO(β / L)."""
    assert lengths([pair(7, 7), pair(7, 7, prompt=3)]).matched_beta == pytest.approx(0.1 * 7)


@given(some)
def test_the_matched_beta_gives_all_tokens_the_same_weight_at_the_start(rows: list[tuple[int, int]]) -> None:
    """Half β on every token, against half β' / n on each of the n tokens of a response."""
    averaged = matched_beta(np.array(rows), summed=0.1)
    of_sums = sum(0.1 / 2 for row in rows for n in row for _ in range(n))
    of_means = sum(averaged / 2 / n for row in rows for n in row for _ in range(n))
    assert of_means == pytest.approx(of_sums)


# ── what stands there more than once ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("A21", "A23")
def test_duplicates_and_contradictions() -> None:
    swapped = TokenizedPair(pair(3, 1).prompt, pair(3, 1).rejected, pair(3, 1).chosen)
    report = length_report(PairStore.of([pair(3, 1), pair(3, 1), swapped, pair(3, 1, prompt=5)]))
    assert report.duplicates == 1
    assert report.contradictions == 3
    assert report.seen_prompts is None


def test_prompts_alone_contradict_nothing() -> None:
    alone = [TokenizedPair([number, 9], response(5, 0), response(6, 0)) for number in range(3)]
    assert length_report(PairStore.of(alone)).contradictions == 0
    good, bad = (TokenizedPair([7, 9], *sides) for sides in ((NOTHING, response(5, 2)), (response(5, 2), NOTHING)))
    assert length_report(PairStore.of([*alone, good, bad])).contradictions == 2, "one response, good and bad"


def test_what_evaluation_has_in_common_with_training() -> None:
    report = length_report(PairStore.of([pair(3, 1), pair(4, 1), pair(5, 1, prompt=99)]), train=STORE)
    assert report.seen_pairs == 1
    assert report.seen_prompts == 2


def test_a_report_is_plain_data() -> None:
    plain = json.loads(json.dumps(length_report(STORE).as_dict(), allow_nan=False))
    assert plain["lengths"]["chosen"]["mean"] == 3.5
    assert plain["lengths"]["rejected"]["histogram"] == {"low": 1, "width": 1, "counts": [1, 2, 1]}
