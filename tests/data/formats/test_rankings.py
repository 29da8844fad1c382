from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.formats.base import ParsedRow, RawRow
from lit_align.data.formats.rankings import SAME, TIES, AllPairs, BestVersusRest, Order, Pairing, RandomPair, Ranking
from lit_align.data.formats.registry import detect, read_row
from lit_align.errors import DataError
from tests.data.examples import turns

PAIRINGS = [AllPairs(), BestVersusRest(), RandomPair(0)]


def read(pairing: Pairing = AllPairs(), min_gap: float = 0.0, **row: Any) -> ParsedRow:
    responses = {"prompt": "p", "responses": ["a", "b", "c"]}
    return read_row(RawRow({**responses, **row}, "rows.jsonl:7"), Ranking(pairing, min_gap))


def sides(reading: ParsedRow) -> list[str]:
    return [f"{pair.chosen}{pair.rejected}" for pair in reading.pairs]


class TestOrder:
    def test_without_a_word_the_first_is_the_best(self) -> None:
        assert sides(read()) == ["ab", "ac", "bc"]

    def test_scores_decide(self) -> None:
        found = read(scores=[1, 3, 2])
        assert sides(found) == ["bc", "ba", "ca"]
        assert [pair.scores for pair in found.pairs] == [(3, 2), (3, 1), (2, 1)]

    def test_a_choice_decides_and_scores_are_kept(self) -> None:
        found = read(scores=[1, 3, 2], choice=0)
        assert sides(found) == ["ab", "ac"]
        assert found.pairs[0].scores == (1, 3)

    def test_a_choice_needs_the_gap_that_is_asked_for(self) -> None:
        found = read(scores=[3, 2, 0], choice=0, min_gap=2)
        assert sides(found) == ["ac"]
        assert found.notes[TIES] == 1
        assert sides(read(scores=[1, 3, 2], choice=0, min_gap=1)) == []
        assert sides(read(choice=0, min_gap=1)) == ["ab", "ac"]

    def test_ties_make_no_pair_and_are_counted(self) -> None:
        found = read(scores=[2, 1, 2])
        assert sides(found) == ["ab", "cb"]
        assert found.notes[TIES] == 1
        none = read(scores=[1, 1, 1])
        assert (none.pairs, none.notes[TIES]) == ((), 3)

    def test_a_gap_that_is_too_small_makes_no_pair(self) -> None:
        assert sides(read(scores=[1, 2, 4], min_gap=2)) == ["cb", "ca"]
        assert sides(read(scores=[1, 2, 4], min_gap=2.5)) == ["ca"]

    def test_responses_that_are_the_same_make_no_pair(self) -> None:
        found = read(responses=["a", "b", "a"])
        assert sides(found) == ["ab", "ba"]
        assert found.notes[SAME] == 1


class TestPairing:
    def test_best_versus_rest(self) -> None:
        assert sides(read(BestVersusRest(), scores=[1, 3, 2])) == ["bc", "ba"]
        assert sides(read(BestVersusRest(), scores=[3, 3, 2])) == ["ac"]

    def test_one_at_random_is_any_of_them_and_the_same_again(self) -> None:
        drawn = Counter(sides(read(RandomPair(seed)))[0] for seed in range(300))
        assert set(drawn) == {"ab", "ac", "bc"}
        assert min(drawn.values()) > 70
        assert sides(read(RandomPair(3))) == sides(read(RandomPair(3), other=1))

    def test_the_draw_differs_between_rows(self) -> None:
        assert len({sides(read(RandomPair(0), prompt=f"p{number}"))[0] for number in range(30)}) == 3

    @given(scores=st.lists(st.integers(0, 3), min_size=2, max_size=6), gap=st.integers(0, 3))
    @pytest.mark.parametrize("pairing", PAIRINGS)
    def test_no_pair_goes_against_the_scores(self, pairing: Pairing, scores: list[int], gap: int) -> None:
        responses = [f"r{number}" for number in range(len(scores))]
        found = read(pairing, gap, responses=responses, scores=scores)
        everything = Order(len(scores), tuple(map(float, scores)), min_gap=gap)
        assert len(everything.places()) + everything.ties == len(scores) * (len(scores) - 1) // 2
        assert all(pair.scores and pair.scores[0] - pair.scores[1] >= max(gap, 1) for pair in found.pairs)
        assert bool(found.pairs) == bool(everything.places())
        assert len(set(sides(found))) == len(found.pairs)


class TestRows:
    def test_messages_and_texts(self) -> None:
        plain = read(prompt=turns("p"), responses=["a", "b"])
        lists = read(prompt=turns("p"), responses=[turns("", "a")[1:], turns("p", "b")])
        assert plain == lists
        assert list(plain.pairs[0].prompt) == turns("p")

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ({"responses": ["a"]}, "responses: found 1 responses; expected a list of two or more"),
            ({"responses": "ab"}, "responses: found text"),
            ({"responses": ["a", None]}, "responses[1]: found null; expected text or messages"),
            ({"responses": ["a", " "]}, "rejected: found only blanks"),
            ({"responses": [turns("p", "a"), turns("q", "b")]}, "the conversations differ before the response"),
            ({"responses": [turns("q", "a"), turns("q", "b")]}, "prompt: differs from the conversation"),
            ({"scores": [1, 2]}, "scores: found 2 scores; expected a score for each of the 3 responses"),
            ({"scores": 3}, "scores: found a number"),
            ({"scores": [1, math.nan, 2]}, "scores[1]: found nan; expected a finite number"),
            ({"scores": [1, None, 2]}, "scores[1]: found None"),
            ({"choice": 3}, "choice: found 3; expected the number of a response, 0 to 2"),
            ({"choice": 0.5}, "choice: found 0.5"),
            ({"choice": "A"}, "choice: found 'A'"),
            ({"prompt": None}, "responses[0]: the response has no prompt"),
        ],
    )
    def test_a_bad_row_is_named(self, row: dict[str, Any], reason: str) -> None:
        with pytest.raises(DataError) as caught:
            read(**row)
        assert str(caught.value).startswith(f"rows.jsonl:7: {reason}")

    def test_a_row_is_told_by_its_columns(self) -> None:
        assert detect(RawRow({"prompt": "p", "responses": []}, "")) == "ranking"
        assert detect(RawRow({"prompt": "p", "responses": [], "chosen": "a", "rejected": "b"}, "")) == "pairs"
