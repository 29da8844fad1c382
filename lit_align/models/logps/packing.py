"""A layout says how the tokens of a batch stand in the rows that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_align.types import PairBatch

LayoutName: TypeAlias = Literal["shared", "packed", "padded", "plain"]
"""``shared``: a prompt once, both responses behind it, nothing padded. ``packed``: every sequence by itself, nothing
padded. ``padded``: one padded row per sequence. ``plain``: as padded, with the model's own logits in full."""
WORTH = 16
"""An opening of fewer tokens is repeated: to see it from all pairs would cost as much."""


@dataclass(frozen=True)
class Packing:
    """The tokens of a batch, one pair behind the other, without padding.

    First stands the opening, which all sequences begin with. Behind it a pair is a head, what else the first side
    needs, and a tail: what the second side does not share with it. No token stands behind the last scored one of its
    side, nor does that one itself: it is predicted, not read.

    Args:
        opening: how many tokens the opening has.
        ids: the tokens.
        positions: their positions in their own sequences.
        pair: the pair that each belongs to; the first for the opening.
        tail: true on tokens of tails.
        blocks: for each pair, the lengths of head and tail, and how much of the head the tail sees.
        places: for each scored token, where the token before it stands.
        targets: the scored tokens' ids, pair by pair.
    """

    opening: int
    ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    pair: Int[Tensor, " token"]
    tail: Bool[Tensor, " token"]
    blocks: Int[Tensor, "pair 3"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]


def scored(batch: PairBatch) -> Bool[Tensor, "pair side token"]:
    """The scored tokens that something stands before."""
    mask = batch.mask.clone()
    mask[..., 0] = False
    return mask


def needed(batch: PairBatch) -> Int[Tensor, "pair side"]:
    """How many tokens of each sequence must be read: all before the last scored one.

    >>> ids, one = torch.tensor([[[5, 6, 7, 0]]]), torch.ones(1)
    >>> mask = torch.tensor([[[False, False, True, False]]])
    >>> needed(PairBatch(ids, ids > 0, mask, mask[..., 0], one, one.long())).tolist()
    [[2]]
    """
    mask = scored(batch)
    return (mask * torch.arange(mask.shape[-1], device=mask.device)).amax(-1)


def shared_tokens(batch: PairBatch) -> Int[Tensor, " pair"]:
    """How many leading tokens the two sides have in common, of those that are needed."""
    ids, there, length = batch.input_ids, batch.attention_mask, needed(batch)
    if ids.shape[1] == 1:
        return torch.zeros_like(length[:, 0])
    equal = (ids[:, 0] == ids[:, 1]) & there[:, 0] & there[:, 1]
    return torch.minimum(equal.long().cumprod(-1).sum(-1), length.amin(-1))


def opening_of(batch: PairBatch) -> int:
    """How many leading tokens all sequences have in common, of those that are needed; 0 where it is not worth while.

    A quality prompt or a system prompt is such an opening.

    >>> ids, one = torch.arange(40).repeat(2, 1, 1), torch.ones(2)
    >>> ids[1, 0, 30:] = 7
    >>> mask = torch.arange(40).expand(2, 1, 40) >= 35
    >>> opening_of(PairBatch(ids, ids >= 0, mask, mask[..., 0], one, one.long()))
    30
    """
    length = needed(batch)
    there = length > 0
    if there.sum() < 2:
        return 0
    ids, length = batch.input_ids[there], length[there]
    common = (ids == ids[0]).all(0).long().cumprod(-1).sum()
    opening = int(torch.minimum(common, length.min()))
    return opening if opening >= WORTH else 0


def pack(batch: PairBatch, shared: Int[Tensor, " pair"], opening: int = 0) -> Packing:
    """The batch without padding.

    Args:
        batch: the pairs.
        shared: how many leading tokens of each pair stand there once; zeros to share nothing.
        opening: how many leading tokens stand there once for all pairs.
    """
    ids, mask, length = batch.input_ids, scored(batch), needed(batch)
    pairs, sides, width = ids.shape
    column = torch.arange(width, device=ids.device)
    first = torch.full_like(length, opening)
    first[:, 1:] = shared.clamp(min=opening).unsqueeze(-1)
    kept = (column < length.unsqueeze(-1)) & (column >= first.unsqueeze(-1))
    where = (kept.flatten().cumsum(0) - 1).view_as(kept) + opening
    pair, side, token = mask.nonzero(as_tuple=True)
    holder = torch.where(token - 1 < first[pair, side], 0, side)
    place = torch.where(token - 1 < opening, token - 1, where[pair, holder, token - 1])
    side_of = torch.arange(sides, device=ids.device).view(1, -1, 1).expand_as(kept)
    pair_of = torch.arange(pairs, device=ids.device).view(-1, 1, 1).expand_as(kept)
    own = (length - first).clamp(min=0)
    tail = own[:, 1] if sides > 1 else torch.zeros_like(shared)
    head = ids[length > 0][:1, :opening].flatten()

    def behind(start: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([start.to(rest.dtype), rest[kept]])

    return Packing(
        opening=opening,
        ids=behind(head, ids),
        positions=behind(column[:opening], column.expand_as(kept)),
        pair=behind(torch.zeros_like(head), pair_of),
        tail=behind(torch.zeros_like(head), side_of > 0),
        blocks=torch.stack([own[:, 0], tail, (shared - opening).clamp(min=0)], dim=-1),
        places=place,
        targets=ids[mask],
    )


@dataclass(frozen=True)
class Rows:
    """Which row each packed token stands in, and where in it.

    Args:
        row: row of each token.
        column: its place in the row.
        count: how many rows.
        width: tokens of the widest.
    """

    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    count: int
    width: int

    def spread(self, values: Tensor, fill: int) -> Tensor:
        """Values of the tokens as ``[row, column]``."""
        out = values.new_full((self.count, self.width), fill)
        out[self.row, self.column] = values
        return out


def rows_of(packing: Packing, capacity: int) -> Rows:
    """Whole pairs in as few rows as first fit, longest first, finds.

    Args:
        packing: the tokens.
        capacity: tokens of a row; a longer pair widens the rows.

    >>> bins(torch.tensor([3, 6, 2, 4]), capacity=6)
    [2, 0, 1, 1]
    """
    sizes = packing.blocks[:, :2].sum(-1)
    bin_of = torch.tensor(bins(sizes, capacity), device=sizes.device)
    start = torch.zeros_like(sizes)
    filled = [0] * (int(bin_of.max()) + 1)
    for pair, (place, size) in enumerate(zip(bin_of.tolist(), sizes.tolist(), strict=True)):
        start[pair] = filled[place]
        filled[place] += size
    within = torch.arange(len(packing.pair), device=sizes.device) - (sizes.cumsum(0) - sizes)[packing.pair]
    return Rows(bin_of[packing.pair], start[packing.pair] + within, len(filled), max(filled))


def bins(sizes: Int[Tensor, " pair"], capacity: int) -> list[int]:
    """The row of each pair; see ``rows_of``."""
    room: list[int] = []
    found = [0] * len(sizes)
    capacity = max(capacity, int(sizes.max()))
    for pair in sizes.argsort(descending=True, stable=True).tolist():
        size = int(sizes[pair])
        fits = next((place for place, left in enumerate(room) if left >= size), None)
        if fits is None:
            fits = len(room)
            room.append(capacity)
        room[fits] -= size
        found[pair] = fits
    return found
