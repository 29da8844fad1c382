"""Packing by hand, and the law that every scored token finds the one before it."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.models.logps.packing import WORTH, Rows, bins, needed, opening_of, pack, rows_of, scored, shared_tokens
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
    assert packing.blocks.tolist() == [[4, 0, 3]]
    assert packing.targets.tolist() == [5, 6, 7, 5, 8]
    assert packing.places.tolist() == [1, 2, 3, 1, 2]


def test_a_tail_by_hand() -> None:
    """Prompt 3 4; chosen 5 6 7, rejected 8 9 5: head 3 4 5 6, tail 8 9 at positions 2 and 3."""
    batch = pair_batch([[3, 4]], [([5, 6, 7], [8, 9, 5])])
    packing = pack(batch, shared_tokens(batch))
    assert packing.ids.tolist() == [3, 4, 5, 6, 8, 9]
    assert packing.positions.tolist() == [0, 1, 2, 3, 2, 3]
    assert packing.tail.tolist() == [False] * 4 + [True] * 2
    assert packing.blocks.tolist() == [[4, 2, 2]]
    assert packing.places.tolist() == [1, 2, 3, 1, 4, 5]


def test_nothing_shared_by_hand() -> None:
    packing = pack(by_hand(), torch.zeros(1, dtype=torch.long))
    assert packing.ids.tolist() == [3, 4, 5, 6, 3, 4, 5]
    assert packing.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert packing.blocks.tolist() == [[4, 3, 0]]
    assert packing.places.tolist() == [1, 2, 3, 5, 6]


def test_one_side_and_an_absent_side() -> None:
    """A batch of one side has no tails; a side without scored tokens is not read."""
    one = pack(by_hand().chosen_side(), torch.zeros(1, dtype=torch.long))
    assert (one.ids.tolist(), one.blocks.tolist()) == ([3, 4, 5, 6], [[4, 0, 0]])
    batch = by_hand()
    mask = batch.mask.clone()
    mask[0, 0] = False
    rest = replace(batch, mask=mask)
    packing = pack(rest, shared_tokens(rest))
    assert (packing.ids.tolist(), packing.blocks.tolist()) == ([3, 4, 5], [[0, 3, 0]])


def test_an_opening_by_hand() -> None:
    """3 4 begins all; behind it 5 6 with tail 8, and 7 with nothing of its own: its first scored token follows 4."""
    batch = pair_batch([[3, 4], [3]], [([5, 6, 7], [8, 9]), ([4, 7], [4, 7])])
    packing = pack(batch, shared_tokens(batch), opening=2)
    assert packing.ids.tolist() == [3, 4, 5, 6, 8]
    assert packing.positions.tolist() == [0, 1, 2, 3, 2]
    assert packing.blocks.tolist() == [[2, 1, 0], [0, 0, 0]]
    assert packing.places.tolist() == [1, 2, 3, 1, 4, 0, 1, 0, 1]


def test_an_opening_is_what_all_begin_with_and_long_enough() -> None:
    batch = opened_batch()
    assert opening_of(batch) == 20
    assert opening_of(absent_sides(batch)) == 20
    assert opening_of(telling_batch()) == 0
    assert opening_of(replace(batch, mask=torch.zeros_like(batch.mask))) == 0
    short = pair_batch([[3] * (WORTH - 1)] * 2, [([5, 6], [7, 8])] * 2)
    assert opening_of(short) == 0
    enough = pair_batch([[3] * WORTH] * 2, [([5, 6], [7, 8])] * 2)
    assert opening_of(enough) == WORTH
    assert opening_of(pair_batch([[3] * WORTH], [([5, 6], [7, 8])])) == WORTH  # both sides of one pair


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.lists(st.integers(3, 5), max_size=4), st.data())
def test_openings_stand_there_once(
    pairs: list[tuple[list[int], list[int], list[int]]], begin: list[int], data: st.DataObject
) -> None:
    batch = pair_batch([begin + prompt for prompt, _, _ in pairs], [(one, other) for _, one, other in pairs])
    opening = data.draw(st.integers(0, len(begin)))
    shared = shared_tokens(batch)
    packing = pack(batch, shared, opening)
    pair, side, token = scored(batch).nonzero(as_tuple=True)
    assert packing.ids[packing.places].equal(batch.input_ids[pair, side, token - 1])
    assert packing.positions[packing.places].equal(token - 1)
    behind = token > opening
    assert packing.pair[packing.places][behind].equal(pair[behind])
    assert len(packing.ids) == int(needed(batch).sum()) - int(shared.sum()) - opening * (len(pairs) - 1)
    assert int(packing.blocks[:, :2].sum()) + opening == len(packing.ids)


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
    assert rows.width <= max(capacity, int(packing.blocks[:, :2].sum(-1).max()))
    assert rows.spread(packing.ids, 0)[rows.row, rows.column].equal(packing.ids)
    assert len(set(zip(rows.row.tolist(), rows.column.tolist(), strict=True))) == len(packing.ids)


def test_bins_by_hand() -> None:
    """5 opens a row of 7; 4 opens another; 3 fits behind 4; 2 fits behind 5; 8 is longer than any row was to be."""
    assert bins(torch.tensor([5, 4, 3, 2]), capacity=7) == [0, 1, 1, 0]
    assert bins(torch.tensor([8, 4, 3, 2]), capacity=7) == [0, 1, 1, 2]


def test_rows_spread() -> None:
    rows = Rows(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2, 2)
    assert rows.spread(torch.tensor([7, 8, 9]), -1).tolist() == [[7, -1], [8, 9]]
