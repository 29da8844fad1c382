"""Layouts of the tokens of a batch in the rows that a model reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_align.types import PairBatch

LayoutName: TypeAlias = Literal["shared", "packed", "padded", "plain"]
"""``shared``: each prompt once, followed by both responses, without padding. ``packed``: every sequence separately,
without padding. ``padded``: one padded row per sequence. ``plain``: ``padded``, with the model's own full logits."""
MIN_PREFIX = 16
"""A common prefix of fewer tokens is repeated: attending to a shared one would cost as much."""


@dataclass(frozen=True)
class Packing:
    """The tokens of a batch, one pair after the other, without padding.

    The prefix, with which all sequences begin, comes first. Each pair follows in two segments: ``first``, the other
    tokens of the first side, and ``second``, the tokens of the second side that it does not share with the first. The
    last scored token of a side and all that follow it are left out: it is predicted, not read.

    Args:
        prefix: length of the prefix.
        ids: the tokens.
        positions: their positions in their own sequences.
        pair: the pair that each belongs to; 0 for the prefix.
        second: true on tokens of second segments.
        segments: for each pair, the lengths of ``first`` and ``second``, and how many tokens of ``first`` the second
            segment sees.
        places: for each scored token, the place of the token before it.
        targets: the scored tokens' ids, pair by pair.
    """

    prefix: int
    ids: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    pair: Int[Tensor, " token"]
    second: Bool[Tensor, " token"]
    segments: Int[Tensor, "pair 3"]
    places: Int[Tensor, " scored"]
    targets: Int[Tensor, " scored"]


def scored(batch: PairBatch) -> Bool[Tensor, "pair side token"]:
    """Return the mask of scored tokens that have a token before them."""
    mask = batch.mask.clone()
    mask[..., 0] = False
    return mask


def needed(batch: PairBatch) -> Int[Tensor, "pair side"]:
    """Count the tokens of each sequence that must be read: all before the last scored one.

    >>> ids, one = torch.tensor([[[5, 6, 7, 0]]]), torch.ones(1)
    >>> mask = torch.tensor([[[False, False, True, False]]])
    >>> needed(PairBatch(ids, ids > 0, mask, mask[..., 0], one, one.long())).tolist()
    [[2]]
    """
    mask = scored(batch)
    return (mask * torch.arange(mask.shape[-1], device=mask.device)).amax(-1)


def shared_tokens(batch: PairBatch) -> Int[Tensor, " pair"]:
    """Count the leading tokens that both sides have in common, among those that are needed."""
    ids, present, length = batch.input_ids, batch.attention_mask, needed(batch)
    if ids.shape[1] == 1:
        return torch.zeros_like(length[:, 0])
    equal = (ids[:, 0] == ids[:, 1]) & present[:, 0] & present[:, 1]
    return torch.minimum(equal.long().cumprod(-1).sum(-1), length.amin(-1))


def common_prefix(batch: PairBatch) -> int:
    """Count the leading tokens that all sequences have in common, among those that are needed; 0 below ``MIN_PREFIX``.

    A quality prompt or a system prompt is such a prefix.

    >>> ids, one = torch.arange(40).repeat(2, 1, 1), torch.ones(2)
    >>> ids[1, 0, 30:] = 7
    >>> mask = torch.arange(40).expand(2, 1, 40) >= 35
    >>> common_prefix(PairBatch(ids, ids >= 0, mask, mask[..., 0], one, one.long()))
    30
    """
    length = needed(batch)
    present = length > 0
    if present.sum() < 2:
        return 0
    ids, length = batch.input_ids[present], length[present]
    common = (ids == ids[0]).all(0).long().cumprod(-1).sum()
    prefix = int(torch.minimum(common, length.min()))
    return prefix if prefix >= MIN_PREFIX else 0


def pack(batch: PairBatch, shared: Int[Tensor, " pair"], prefix: int = 0) -> Packing:
    """Remove the padding of a batch, and repetitions of what its sequences begin with.

    Args:
        batch: the pairs.
        shared: number of leading tokens of each pair to store once; zeros to share nothing.
        prefix: number of leading tokens to store once for all pairs.
    """
    ids, mask, length = batch.input_ids, scored(batch), needed(batch)
    pairs, sides, width = ids.shape
    column = torch.arange(width, device=ids.device)
    start = torch.full_like(length, prefix)
    start[:, 1:] = shared.clamp(min=prefix).unsqueeze(-1)
    kept = (column < length.unsqueeze(-1)) & (column >= start.unsqueeze(-1))
    packed_place = (kept.flatten().cumsum(0) - 1).view_as(kept) + prefix
    pair, side, token = mask.nonzero(as_tuple=True)
    holder = torch.where(token - 1 < start[pair, side], 0, side)
    place = torch.where(token - 1 < prefix, token - 1, packed_place[pair, holder, token - 1])
    side_of = torch.arange(sides, device=ids.device).view(1, -1, 1).expand_as(kept)
    pair_of = torch.arange(pairs, device=ids.device).view(-1, 1, 1).expand_as(kept)
    own = (length - start).clamp(min=0)
    second = own[:, 1] if sides > 1 else torch.zeros_like(shared)
    prefix_ids = ids[length > 0][:1, :prefix].flatten()

    def after_prefix(values: Tensor, rest: Tensor) -> Tensor:
        return torch.cat([values.to(rest.dtype), rest[kept]])

    return Packing(
        prefix=prefix,
        ids=after_prefix(prefix_ids, ids),
        positions=after_prefix(column[:prefix], column.expand_as(kept)),
        pair=after_prefix(torch.zeros_like(prefix_ids), pair_of),
        second=after_prefix(torch.zeros_like(prefix_ids), side_of > 0),
        segments=torch.stack([own[:, 0], second, (shared - prefix).clamp(min=0)], dim=-1),
        places=place,
        targets=ids[mask],
    )


@dataclass(frozen=True)
class Rows:
    """The row and the column of each packed token.

    Args:
        row: of each token.
        column: of each token.
        count: number of rows.
        width: number of columns.
    """

    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    count: int
    width: int

    def spread(self, values: Tensor, fill: int) -> Tensor:
        """Arrange values of the tokens as ``[row, column]``."""
        out = values.new_full((self.count, self.width), fill)
        out[self.row, self.column] = values
        return out


def rows_of(packing: Packing, capacity: int) -> Rows:
    """Distribute whole pairs over rows by first fit, longest first.

    Args:
        packing: the tokens, without a prefix.
        capacity: tokens of a row; a longer pair widens the rows.

    >>> bins(torch.tensor([3, 6, 2, 4]), capacity=6)
    [2, 0, 1, 1]
    """
    sizes = packing.segments[:, :2].sum(-1)
    bin_of = torch.tensor(bins(sizes, capacity), device=sizes.device)
    start = torch.zeros_like(sizes)
    filled = [0] * (int(bin_of.max()) + 1)
    for pair, (place, size) in enumerate(zip(bin_of.tolist(), sizes.tolist(), strict=True)):
        start[pair] = filled[place]
        filled[place] += size
    within = torch.arange(len(packing.pair), device=sizes.device) - (sizes.cumsum(0) - sizes)[packing.pair]
    return Rows(bin_of[packing.pair], start[packing.pair] + within, len(filled), max(filled))


def bins(sizes: Int[Tensor, " pair"], capacity: int) -> list[int]:
    """Choose the row of each pair; see ``rows_of``."""
    room: list[int] = []
    rows = [0] * len(sizes)
    capacity = max(capacity, int(sizes.max()))
    for pair in sizes.argsort(descending=True, stable=True).tolist():
        size = int(sizes[pair])
        fits = next((place for place, left in enumerate(room) if left >= size), None)
        if fits is None:
            fits = len(room)
            room.append(capacity)
        room[fits] -= size
        rows[pair] = fits
    return rows
