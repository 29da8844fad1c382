from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.prepared.store import PairStore
from lit_align.types import TokenizedPair, TokenizedResponse

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)


def response(ids: list[int], truncated: bool = False) -> TokenizedResponse:
    return TokenizedResponse(ids, [True] * len(ids), truncated)


RESPONSES = st.builds(response, IDS, st.booleans())


@settings(deadline=None)
@given(pairs=st.lists(st.builds(TokenizedPair, IDS, RESPONSES, RESPONSES, IDS), min_size=1, max_size=6))
def test_what_goes_in_comes_out(pairs: list[TokenizedPair]) -> None:
    pairs = [replace(pair, index=place) for place, pair in enumerate(pairs)]
    store = PairStore.of(pairs)
    assert list(store) == pairs
    assert store[-1] == pairs[-1]
    assert store[1:] == pairs[1:]
    assert store.lengths.tolist() == [[side.length for side in pair.sides] for pair in pairs]
    widths = [
        max(len(pair.prompt), len(pair.prompted or [])) + max(len(side.ids) for side in pair.sides) for pair in pairs
    ]
    assert store.widths.tolist() == widths


def test_no_prompted_side_is_none_again() -> None:
    store = PairStore.of([TokenizedPair([1], response([2]), response([3]))])
    assert store[0].prompted is None


def test_a_position_outside_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        PairStore.of([TokenizedPair([1], response([2]), response([3]))])[1]


def test_digests_see_where_a_part_ends() -> None:
    first = TokenizedPair([1], response([2, 3]), response([4]))
    second = TokenizedPair([1], response([2]), response([3, 4]))
    a, b = PairStore.of([first, second]).hashes(("prompt", "chosen", "rejected"))
    assert a != b


@pytest.mark.parametrize(
    "other",
    [
        TokenizedPair([1, 9], response([2]), response([3])),
        TokenizedPair([1], response([9]), response([3])),
        TokenizedPair([1], response([3]), response([2])),
        TokenizedPair([1], response([2], truncated=True), response([3])),
        TokenizedPair([1], response([2]), response([3]), [7]),
    ],
)
def test_the_fingerprint_sees_every_change(other: TokenizedPair) -> None:
    pair = TokenizedPair([1], response([2]), response([3]))
    same = PairStore.of([pair, pair]).fingerprint
    assert PairStore.of([pair, pair]).fingerprint == same
    assert PairStore.of([pair, other]).fingerprint != same
    assert PairStore.of([pair]).fingerprint != same


def test_stop_tokens_are_those_of_whole_responses() -> None:
    store = PairStore.of([TokenizedPair([1], response([2, 8]), response([3, 9], truncated=True))])
    assert store.stop_tokens == {8}
