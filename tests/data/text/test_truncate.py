from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lit_align.data.text.truncate import (
    Cut,
    CutPrompts,
    Drop,
    EncodedPair,
    EncodedResponse,
    PromptIds,
    PromptSide,
    Truncation,
)
from lit_align.errors import DataError
from lit_align.types import TokenizedPair

# the shape checks of the test run pick a random element of a list, also while hypothesis draws
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

BOS, P, CLOSE, EOS = 1, [2, 3], 4, 9
IDS = st.integers(10, 99)


@st.composite
def encoded_pairs(draw: st.DrawFn) -> EncodedPair:
    """Pairs of any lengths, with and without BOS and quality prompt."""
    start = draw(st.sampled_from([[], [BOS]]))
    before, after = draw(st.lists(IDS, max_size=12)), draw(st.lists(IDS, min_size=1, max_size=12))
    closing = draw(st.sampled_from([[], [CLOSE]]))
    prompted = PromptIds(start, before, P, after, closing) if draw(st.booleans()) else None
    chosen, rejected = (draw(st.lists(IDS, min_size=1, max_size=25)) + [EOS] for _ in range(2))
    assume(chosen[:2] != rejected[:2])
    prompt = PromptIds(start, [], [], before + after, closing)
    return EncodedPair(prompt, said(*chosen), said(*rejected), prompted, "rows.jsonl:7")


_SIDES = st.sampled_from(["left", "right"])
cuts = st.builds(Cut, st.integers(9, 60), st.none() | st.integers(2, 4), prompt=_SIDES)


def said(*ids: int) -> EncodedResponse:
    return EncodedResponse(list(ids))


def again(tokenized: TokenizedPair, pair: EncodedPair) -> EncodedPair:
    """What was kept, as if it had been encoded that way."""
    start, closing = pair.prompt.start, pair.prompt.closing
    stop = len(tokenized.prompt) - len(closing)
    prompt = PromptIds(start, [], [], list(tokenized.prompt[len(start) : stop]), closing)
    prompted = None
    if tokenized.prompted is not None:
        rest = list(tokenized.prompted[len(start) : len(tokenized.prompted) - len(closing)])
        place = rest.index(P[0])
        prompted = PromptIds(start, rest[:place], P, rest[place + len(P) :], closing)
    return EncodedPair(prompt, said(*tokenized.chosen.ids), said(*tokenized.rejected.ids), prompted)


class TestCut:
    @given(pair=encoded_pairs(), cut=cuts)
    def test_everything_fits_and_only_the_named_ends_are_lost(self, pair: EncodedPair, cut: Cut) -> None:
        kept = cut(pair)
        for ids, side in zip((pair.chosen.ids, pair.rejected.ids), kept.sides, strict=True):
            assert len(kept.prompt) + len(side.ids) <= cut.max_length
            assert len(kept.prompted or []) + len(side.ids) <= cut.max_length
            assert 1 <= len(side.ids) <= (cut.max_response_length or cut.max_length)
            assert list(side.ids) == ids[: len(side.ids)]
            assert side.truncated == (len(side.ids) < len(ids)) == (side.ids[-1] != EOS)
            assert list(side.scored) == [True] * len(side.ids)
        start = len(pair.prompt.start)
        assert kept.prompt[:start] == pair.prompt.start
        stop = len(kept.prompt) - len(pair.prompt.closing)
        assert kept.prompt[stop:] == pair.prompt.closing
        query = list(kept.prompt[start:stop])
        assert query
        whole = pair.prompt.after
        assert query == (whole[-len(query) :] if cut.prompt == "left" else whole[: len(query)])

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
        assert [list(side.ids) for side in kept.sides] == [pair.chosen.ids, pair.rejected.ids]
        assert not any(side.truncated for side in kept.sides)

    def test_one_half_may_use_what_the_other_leaves(self) -> None:
        long, short = list(range(10, 60)), list(range(10, 14))
        prompt = PromptIds([BOS], [], [], short)
        assert len(Cut(30)(EncodedPair(prompt, said(*long), said(5))).chosen.ids) == 25
        prompt = replace(prompt, after=long)
        assert len(Cut(30)(EncodedPair(prompt, said(*short), said(5))).prompt) == 26
        both = Cut(31)(EncodedPair(prompt, said(*long), said(5)))
        assert (len(both.prompt), len(both.chosen.ids)) == (16, 15)

    def test_no_room_for_the_prompt(self) -> None:
        pair = EncodedPair(PromptIds([BOS], [], P, [50]), said(*[10] * 8), said(11), where="rows.jsonl:7")
        with pytest.raises(DataError, match=r"rows\.jsonl:7: no room for the prompt: 3 tokens that must stay"):
            Cut(10, 8)(pair)
        with pytest.raises(DataError, match="no room for the prompt"):
            Cut(4)(pair)

    @pytest.mark.fault("A19")
    def test_responses_that_differ_only_in_what_is_cut(self) -> None:
        pair = EncodedPair(PromptIds([], [], [], [50]), said(10, 11, 12), said(10, 11, 13), where="rows.jsonl:7")
        with pytest.raises(DataError, match=r"rows\.jsonl:7: .* the same 2 tokens after truncation"):
            Cut(10, 2)(pair)

    def test_room_can_be_kept_for_the_response(self) -> None:
        long = PromptIds([BOS], [], [], list(range(10, 60)))
        pair = EncodedPair(long, said(*range(10, 40)), said(5))
        kept = Cut(31, min_response=20)(pair)
        assert (len(kept.prompt), len(kept.chosen.ids)) == (11, 20)
        assert len(Cut(31, max_response_length=12, min_response=4)(pair).chosen.ids) == 4
        short = EncodedPair(replace(long, after=[10, 11]), said(*range(10, 40)), said(5))
        assert len(Cut(31, max_response_length=12, min_response=4)(short).chosen.ids) == 12

    @given(pair=encoded_pairs(), length=st.integers(20, 60), room=st.integers(1, 10))
    def test_so_much_of_the_response_is_there(self, pair: EncodedPair, length: int, room: int) -> None:
        kept = Cut(length, min_response=room)(pair) if pair.chosen.ids[:room] != pair.rejected.ids[:room] else None
        for side, ids in zip(kept.sides if kept else (), (pair.chosen.ids, pair.rejected.ids), strict=False):
            assert len(side.ids) >= min(room, len(ids))

    def test_a_cut_from_the_right_leaves_what_opens_the_response(self) -> None:
        prompt = PromptIds([BOS], [], [], [50, 51, 52, 53], [CLOSE])
        kept = Cut(6, 2, prompt="right")(EncodedPair(prompt, said(10, EOS), said(11, EOS)))
        assert kept.prompt == [BOS, 50, 51, CLOSE]

    def test_places_that_are_not_scored_stay_so(self) -> None:
        pair = EncodedPair(
            PromptIds([], [], [], [50]), EncodedResponse([10, 11, 12, EOS], frozenset({0, 2})), said(11)
        )
        assert Cut(10)(pair).chosen.scored == [False, True, False, True]
        assert Cut(10, 3)(pair).chosen.scored == [False, True, False]

    def test_a_response_with_nothing_scored_left(self) -> None:
        pair = EncodedPair(PromptIds([], [], [], [50]), EncodedResponse([10, 11, EOS], frozenset({0, 1})), said(11))
        with pytest.raises(DataError, match="no scored token is left of a response after truncation"):
            Cut(10, 2)(pair)

    @given(pair=encoded_pairs(), cut=cuts)
    def test_cutting_prompts_alone_is_cutting_or_leaving_out(self, pair: EncodedPair, cut: Cut) -> None:
        kept = CutPrompts(cut.max_length, cut.max_response_length, prompt=cut.prompt)(pair)
        whole = cut(pair)
        assert kept == (None if any(side.truncated for side in whole.sides) else whole)


@pytest.mark.parametrize(("side", "told"), [("left", False), ("right", True)])
@pytest.mark.parametrize("kind", [Cut, CutPrompts])
def test_what_opens_the_response_is_told_apart_only_where_it_is_in_danger(
    kind: type[Truncation], side: PromptSide, told: bool
) -> None:
    assert kind(10, prompt=side).keeps_closing is told


class TestDrop:
    @given(pair=encoded_pairs(), length=st.integers(8, 60), response=st.none() | st.integers(2, 30))
    def test_a_pair_is_whole_or_left_out(self, pair: EncodedPair, length: int, response: int | None) -> None:
        kept = Drop(length, response)(pair)
        longest = max(len(prompt.ids()) for prompt in pair.prompts) + pair.response
        assert (kept is None) == (longest > length or pair.response > (response or length))
        if kept is not None:
            assert kept == Cut(200)(pair)

    def test_equal_responses_are_an_error_here_too(self) -> None:
        pair = EncodedPair(PromptIds([], [], [], [50]), said(10, EOS), said(10, EOS), where="rows.jsonl:7")
        with pytest.raises(DataError, match="the same 2 tokens$"):
            Drop(10)(pair)
