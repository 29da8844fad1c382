"""Packing by hand, and the law that every scored token follows its predecessor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.models.logps.packing import (
    MIN_PREFIX,
    Rows,
    bins,
    common_prefix,
    needed,
    pack,
    rows_of,
    scored,
    shared_tokens,
)
from lit_align.types import PairBatch
from tests.conftest import pair_batch
from tests.models.architectures import absent_sides, opened_batch, telling_batch

TOKENS = st.lists(st.integers(3, 5), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4)


def by_hand() -> PairBatch:
    """Prompt 3 4; chosen 5 6 7; rejected 5 8: they part behind 3 4 5."""
    return pair_batch([[3, 4]], [([5, 6, 7], [5, 8])])


def test_a_shared_prompt_by_hand() -> None:
    """The last token of a side is predicted, not read. Chosen reads 3 4 5 6, rejected 3 4 5, all of it shared."""
    batch = by_hand()
    assert needed(batch).tolist() == [[4, 3]]
    assert shared_tokens(batch).tolist() == [3]
    packing = pack(batch, shared_tokens(batch))
    assert packing.ids.tolist() == [3, 4, 5, 6]
    assert packing.segments.tolist() == [[4, 0, 3]]
    assert packing.targets.tolist() == [5, 6, 7, 5, 8]
    assert packing.places.tolist() == [1, 2, 3, 1, 2]


def test_a_second_segment_by_hand() -> None:
    """Prompt 3 4; chosen 5 6 7, rejected 8 9 5: first segment 3 4 5 6, second 8 9 at positions 2 and 3."""
    batch = pair_batch([[3, 4]], [([5, 6, 7], [8, 9, 5])])
    packing = pack(batch, shared_tokens(batch))
    assert packing.ids.tolist() == [3, 4, 5, 6, 8, 9]
    assert packing.positions.tolist() == [0, 1, 2, 3, 2, 3]
    assert packing.second.tolist() == [False] * 4 + [True] * 2
    assert packing.segments.tolist() == [[4, 2, 2]]
    assert packing.places.tolist() == [1, 2, 3, 1, 4, 5]


def test_nothing_shared_by_hand() -> None:
    packing = pack(by_hand(), torch.zeros(1, dtype=torch.long))
    assert packing.ids.tolist() == [3, 4, 5, 6, 3, 4, 5]
    assert packing.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packing.segments.tolist() == [[4, 3, 0]]
    assert packing.places.tolist() == [1, 2, 3, 5, 6]


def test_one_side_and_an_absent_side() -> None:
    """A batch of one side has no second segments; a side without scored tokens is not read."""
    one = pack(by_hand().chosen_side(), torch.zeros(1, dtype=torch.long))
    assert (one.ids.tolist(), one.segments.tolist()) == ([3, 4, 5, 6], [[4, 0, 0]])
    batch = by_hand()
    mask = batch.mask.clone()
    mask[0, 0] = False
    rest = replace(batch, mask=mask)
    packing = pack(rest, shared_tokens(rest))
    assert (packing.ids.tolist(), packing.segments.tolist()) == ([3, 4, 5], [[0, 3, 0]])


def test_a_prefix_by_hand() -> None:
    """All begin with 3 4; then 5 6, second segment 8; 7 has no token of its own: its first scored one follows 4."""
    batch = pair_batch([[3, 4], [3]], [([5, 6, 7], [8, 9]), ([4, 7], [4, 7])])
    packing = pack(batch, shared_tokens(batch), prefix=2)
    assert packing.ids.tolist() == [3, 4, 5, 6, 8]
    assert packing.positions.tolist() == [0, 1, 2, 3, 2]
    assert packing.segments.tolist() == [[2, 1, 0], [0, 0, 0]]
    assert packing.places.tolist() == [1, 2, 3, 1, 4, 0, 1, 0, 1]


def test_a_prefix_is_common_to_all_and_long_enough() -> None:
    batch = opened_batch()
    assert common_prefix(batch) == 20
    assert common_prefix(absent_sides(batch)) == 20
    assert common_prefix(telling_batch()) == 0
    assert common_prefix(replace(batch, mask=torch.zeros_like(batch.mask))) == 0
    short = pair_batch([[3] * (MIN_PREFIX - 1)] * 2, [([5, 6], [7, 8])] * 2)
    assert common_prefix(short) == 0
    enough = pair_batch([[3] * MIN_PREFIX] * 2, [([5, 6], [7, 8])] * 2)
    assert common_prefix(enough) == MIN_PREFIX
    assert common_prefix(pair_batch([[3] * MIN_PREFIX], [([5, 6], [7, 8])])) == MIN_PREFIX  # both sides of one pair


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(PAIRS, st.lists(st.integers(3, 5), max_size=4), st.data())
def test_a_prefix_is_stored_once(
    pairs: list[tuple[list[int], list[int], list[int]]], begin: list[int], data: st.DataObject
) -> None:
    batch = pair_batch([begin + prompt for prompt, _, _ in pairs], [(one, other) for _, one, other in pairs])
    prefix = data.draw(st.integers(0, len(begin)))
    shared = shared_tokens(batch)
    packing = pack(batch, shared, prefix)
    pair, side, token = scored(batch).nonzero(as_tuple=True)
    assert packing.ids[packing.places].equal(batch.input_ids[pair, side, token - 1])
    assert packing.positions[packing.places].equal(token - 1)
    behind = token > prefix
    assert packing.pair[packing.places][behind].equal(pair[behind])
    assert len(packing.ids) == int(needed(batch).sum()) - int(shared.sum()) - prefix * (len(pairs) - 1)
    assert int(packing.segments[:, :2].sum()) + prefix == len(packing.ids)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.booleans(), st.integers(1, 30))
def test_every_scored_token_finds_the_one_before_it(
    pairs: list[tuple[list[int], list[int], list[int]]], share: bool, capacity: int
) -> None:
    """In every layout: the right id, at the right position, of the right pair."""
    batch = pair_batch([prompt for prompt, _, _ in pairs], [(chosen, rejected) for _, chosen, rejected in pairs])
    shared = shared_tokens(batch) if share else torch.zeros(len(pairs), dtype=torch.long)
    packing = pack(batch, shared)
    pair, side, token = scored(batch).nonzero(as_tuple=True)
    assert packing.targets.equal(batch.input_ids[pair, side, token])
    assert packing.ids[packing.places].equal(batch.input_ids[pair, side, token - 1])
    assert packing.positions[packing.places].equal(token - 1)
    assert packing.pair[packing.places].equal(pair)
    assert len(packing.ids) == int(needed(batch).sum()) - int(shared.sum())
    rows = rows_of(packing, capacity)
    assert rows.width <= max(capacity, int(packing.segments[:, :2].sum(-1).max()))
    assert rows.spread(packing.ids, 0)[rows.row, rows.column].equal(packing.ids)
    assert len(set(zip(rows.row.tolist(), rows.column.tolist(), strict=True))) == len(packing.ids)


def test_bins_by_hand() -> None:
    """5 opens a row of 7; 4 opens another; 3 fits behind 4; 2 fits behind 5; 8 is longer than any row was to be."""
    assert bins(torch.tensor([5, 4, 3, 2]), capacity=7) == [0, 1, 1, 0]
    assert bins(torch.tensor([8, 4, 3, 2]), capacity=7) == [0, 1, 1, 2]


def test_rows_spread() -> None:
    rows = Rows(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2, 2)
    assert rows.spread(torch.tensor([7, 8, 9]), -1).tolist() == [[7, -1], [8, 9]]
