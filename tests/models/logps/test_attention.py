"""Attention within segments: all implementations use the same mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_align.models.logps.attention import additive, block_mask, causal_mask, plan_of, segment_attention, visible
from lit_align.models.logps.packing import Packing, common_prefix, needed, pack, rows_of, scored, shared_tokens
from lit_align.types import PairBatch
from tests.conftest import pair_batch
from tests.models.architectures import absent_sides, opened_batch, telling_batch


def packing_by_hand() -> Packing:
    """First segment 3 4 5, second segment 8 9 that sees 3 4 of it; then another pair of one token."""
    batch = pair_batch([[3, 4], [7]], [([5, 6], [8, 9, 5]), ([4], [4])])
    return pack(batch, shared_tokens(batch))


def test_a_mask_by_hand() -> None:
    packing = packing_by_hand()
    assert packing.ids.tolist() == [3, 4, 5, 8, 9, 7]
    mask = visible(packing, rows_of(packing, capacity=6))[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_padding_sees_itself_alone() -> None:
    packing = packing_by_hand()
    mask = visible(packing, rows_of(packing, capacity=0))  # a row of five, a row of one
    assert mask.shape == (2, 1, 5, 5)
    assert mask[1, 0].equal(torch.eye(5, dtype=torch.bool))


def test_additive_masks() -> None:
    mask = additive(torch.tensor([[True, False]]), torch.float32)
    assert mask.tolist() == [[0.0, torch.finfo(torch.float32).min]]


def states(packing: Packing, heads: int = 4) -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    return [
        torch.randn(1, count, len(packing.ids), 8, generator=made, dtype=torch.float64, requires_grad=True)
        for count in (heads, 2, 2)
    ]


def written_out(states: list[Tensor], mask: Tensor, cap: float | None) -> Tensor:
    query, key, value = states[0], *(part.repeat_interleave(2, 1) for part in states[1:])
    scores = query @ key.transpose(2, 3) * 0.5
    scores = scores if cap is None else cap * (scores / cap).tanh()
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "packed"])
@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_segments_equal_a_dense_mask(share: bool, window: int | None, cap: float | None) -> None:
    """Values and gradients, with grouped heads; a window counts positions, not places in the row."""
    batch = telling_batch()
    packing = pack(batch, shared_tokens(batch) if share else torch.zeros(5, dtype=torch.long))
    parts = states(packing)
    found, _ = segment_attention(
        nn.Identity(), *parts, plan_of(packing), scaling=0.5, sliding_window=window, softcap=cap, dropout=0.0
    )
    mask = visible(packing, rows_of(packing, len(packing.ids)))
    order = rows_of(packing, len(packing.ids)).column
    assert order.equal(torch.arange(len(order)))
    if window is not None:
        near = packing.positions[:, None] - packing.positions < window
        mask = mask & near
    truth = written_out(parts, mask, cap)
    rounding = 1e-12 if cap is None else 1e-6  # a capped softmax is float32
    torch.testing.assert_close(found, truth, rtol=rounding, atol=rounding)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=found.dtype)
    ours = torch.autograd.grad((found * weights).sum(), parts)
    theirs = torch.autograd.grad((truth * weights).sum(), parts)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def ways(batch: PairBatch, packing: Packing) -> Tensor:
    """Which packed tokens see which, from the sequences themselves: what stands before it in its own."""
    pair, side, token = (scored(batch).long().flip(-1).cumsum(-1).flip(-1) > 0).nonzero(as_tuple=True)
    read = token < needed(batch)[pair, side]
    found = torch.zeros(len(packing.ids), len(packing.ids), dtype=torch.bool)
    for row in range(len(batch.index)):
        for column in (0, 1):
            own = read & (pair == row) & (side == column)
            if own.any():
                count = int(token[own].max()) + 1
                places = place_of(packing, row, column)[:count]
                assert packing.ids[places].equal(batch.input_ids[row, column, :count])
                found[places.unsqueeze(-1), places] |= torch.ones(count, count, dtype=torch.bool).tril()
    return found


def place_of(packing: Packing, pair: int, side: int) -> Tensor:
    """The places of the tokens of a sequence: prefix, first and second segment, according to the packing."""
    own = torch.arange(packing.prefix, len(packing.ids))
    mine = own[packing.pair[packing.prefix :] == pair]
    first, second, shared = packing.segments[pair].tolist()
    prefix = torch.arange(packing.prefix)
    return torch.cat([prefix, mine[:first] if side == 0 else torch.cat([mine[:shared], mine[first : first + second]])])


@pytest.mark.parametrize("batch", [opened_batch(), absent_sides(opened_batch())], ids=["pairs", "absent sides"])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 3, 25])
def test_a_prefix_is_seen_by_all(batch: PairBatch, window: int | None, cap: float | None) -> None:
    packing = pack(batch, shared_tokens(batch), common_prefix(batch))
    assert packing.prefix == 20
    parts = states(packing)
    found, _ = segment_attention(
        nn.Identity(), *parts, plan_of(packing), scaling=0.5, sliding_window=window, softcap=cap, dropout=0.0
    )
    mask = ways(batch, packing)
    if window is not None:
        mask &= packing.positions[:, None] - packing.positions < window
    rounding = 1e-12 if cap is None else 1e-6
    truth = written_out(parts, mask, cap)
    torch.testing.assert_close(found, truth, rtol=rounding, atol=rounding)
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), parts), torch.autograd.grad(truth.square().sum(), parts), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)


def test_a_window_by_hand() -> None:
    assert causal_mask(3, 3, 2, torch.device("cpu")).int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("option", ["position_bias", "s_aux"])
def test_what_it_does_not_know_is_refused(option: str) -> None:
    packing = packing_by_hand()
    options: dict[str, Any] = {option: torch.zeros(1)}
    with pytest.raises(NotImplementedError, match=option):
        segment_attention(nn.Identity(), *states(packing), plan_of(packing), **options)


@pytest.mark.parametrize(
    "batch", [telling_batch(), opened_batch(), absent_sides(opened_batch())], ids=["pairs", "opened", "absent sides"]
)
def test_blocks_of_flex_attention_see_the_same(batch: PairBatch) -> None:
    """The rule of the block mask, asked for every query and key."""
    packing = pack(batch, shared_tokens(batch), common_prefix(batch))
    count = len(packing.ids)
    rule = block_mask(packing, 128).mask_mod
    query, key = torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
    zero = torch.zeros((), dtype=torch.long)
    seen = rule(zero, zero, query, key)
    assert seen.equal(ways(batch, packing))
    if not packing.prefix:
        assert seen.equal(visible(packing, rows_of(packing, count))[0, 0])
