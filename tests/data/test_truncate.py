from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_align.data.errors import DataError
from lit_align.data.truncate import Cut, Drop, EncodedPair, PromptIds
from lit_align.types import TokenizedPair

# the shape checks of the test run pick a random element of a list, also while hypothesis draws
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

BOS, P, EOS = 1, [2, 3], 9
IDS = st.integers(10, 99)


@st.composite
def encoded_pairs(draw: st.DrawFn) -> EncodedPair:
    """Pairs of any lengths, with and without BOS and quality prompt."""
    start = draw(st.sampled_from([[], [BOS]]))
    before, after = draw(st.lists(IDS, max_size=12)), draw(st.lists(IDS, min_size=1, max_size=12))
    prompted = PromptIds(start, before, P, after) if draw(st.booleans()) else None
    chosen, rejected = (draw(st.lists(IDS, min_size=1, max_size=25)) + [EOS] for _ in range(2))
    assume(chosen[:2] != rejected[:2])
    return EncodedPair(PromptIds(start, [], [], before + after), chosen, rejected, prompted, "rows.jsonl:7")


cuts = st.builds(Cut, st.integers(8, 60), st.none() | st.integers(2, 4))


def again(tokenized: TokenizedPair, pair: EncodedPair) -> EncodedPair:
    """What was kept, as if it had been encoded that way."""
    start = len(pair.prompt.start)
    prompt = PromptIds(pair.prompt.start, [], [], list(tokenized.prompt[start:]))
    prompted = None
    if tokenized.prompted is not None:
        rest = list(tokenized.prompted[start:])
        place = rest.index(P[0])
        prompted = PromptIds(pair.prompt.start, rest[:place], P, rest[place + len(P) :])
    return EncodedPair(prompt, list(tokenized.chosen.ids), list(tokenized.rejected.ids), prompted)


class TestCut:
    @given(pair=encoded_pairs(), cut=cuts)
    def test_everything_fits_and_only_the_right_ends_are_lost(self, pair: EncodedPair, cut: Cut) -> None:
        kept = cut(pair)
        for ids, side in zip((pair.chosen, pair.rejected), kept.sides, strict=True):
            assert len(kept.prompt) + len(side.ids) <= cut.max_length
            assert len(kept.prompted or []) + len(side.ids) <= cut.max_length
            assert 1 <= len(side.ids) <= (cut.max_response_length or cut.max_length)
            assert list(side.ids) == ids[: len(side.ids)]
            assert side.truncated == (len(side.ids) < len(ids)) == (side.ids[-1] != EOS)
            assert list(side.scored) == [True] * len(side.ids)
        start = len(pair.prompt.start)
        assert kept.prompt[:start] == pair.prompt.start
        tail = list(kept.prompt[start:])
        assert tail
        assert tail == pair.prompt.ids()[-len(tail) :]

    @given(pair=encoded_pairs(), cut=cuts)
    def test_the_quality_prompt_survives_and_the_query_is_the_same_without_it(
        self, pair: EncodedPair, cut: Cut
    ) -> None:
        kept = cut(pair)
        assert (kept.prompted is None) == (pair.prompted is None)
        if kept.prompted is not None:
            place = list(kept.prompted).index(P[0])
            assert list(kept.prompted[place : place + 2]) == P
            assert [*kept.prompted[:place], *kept.prompted[place + 2 :]] == kept.prompt

    @given(pair=encoded_pairs(), cut=cuts)
    def test_cutting_again_changes_nothing(self, pair: EncodedPair, cut: Cut) -> None:
        once = cut(pair)
        twice = cut(again(once, pair))
        assert (twice.prompt, twice.prompted) == (once.prompt, once.prompted)
        assert [side.ids for side in twice.sides] == [side.ids for side in once.sides]

    @given(pair=encoded_pairs())
    def test_what_fits_is_left_alone(self, pair: EncodedPair) -> None:
        kept = Cut(200)(pair)
        assert kept.prompt == pair.prompt.ids()
        assert [list(side.ids) for side in kept.sides] == [pair.chosen, pair.rejected]
        assert not any(side.truncated for side in kept.sides)

    def test_one_half_may_use_what_the_other_leaves(self) -> None:
        long, short = list(range(10, 60)), list(range(10, 14))
        prompt = PromptIds([BOS], [], [], short)
        assert len(Cut(30)(EncodedPair(prompt, long, [5])).chosen.ids) == 25
        prompt = replace(prompt, after=long)
        assert len(Cut(30)(EncodedPair(prompt, short, [5])).prompt) == 26
        both = Cut(31)(EncodedPair(prompt, long, [5]))
        assert (len(both.prompt), len(both.chosen.ids)) == (16, 15)

    def test_no_room_for_the_prompt(self) -> None:
        pair = EncodedPair(PromptIds([BOS], [], P, [50]), [10] * 8, [11], where="rows.jsonl:7")
        with pytest.raises(DataError, match=r"rows\.jsonl:7: no room for the prompt: 3 tokens that must stay"):
            Cut(10, 8)(pair)
        with pytest.raises(DataError, match="no room for the prompt"):
            Cut(4)(pair)

    def test_responses_that_differ_only_in_what_is_cut(self) -> None:
        pair = EncodedPair(PromptIds([], [], [], [50]), [10, 11, 12], [10, 11, 13], where="rows.jsonl:7")
        with pytest.raises(DataError, match=r"rows\.jsonl:7: .* the same 2 tokens after truncation"):
            Cut(10, 2)(pair)


class TestDrop:
    @given(pair=encoded_pairs(), length=st.integers(8, 60), response=st.none() | st.integers(2, 30))
    def test_a_pair_is_whole_or_left_out(self, pair: EncodedPair, length: int, response: int | None) -> None:
        kept = Drop(length, response)(pair)
        longest = max(len(prompt.ids()) for prompt in pair.prompts) + pair.response
        assert (kept is None) == (longest > length or pair.response > (response or length))
        if kept is not None:
            assert kept == Cut(200)(pair)

    def test_equal_responses_are_an_error_here_too(self) -> None:
        pair = EncodedPair(PromptIds([], [], [], [50]), [10, EOS], [10, EOS], where="rows.jsonl:7")
        with pytest.raises(DataError, match="the same 2 tokens$"):
            Drop(10)(pair)
