"""The inputs of a model for a batch: padded or packed rows, and the positions of the scored tokens in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from lit_align.models.lm_head.fused_loss import ScoredTokens
from lit_align.models.lm_head.projection import Hidden
from lit_align.models.logps.attention import NAME, additive, block_mask, flex_width, plan_of, visible
from lit_align.models.logps.packing import Packing, common_prefix, needed, pack, rows_of, scored, shared_tokens
from lit_align.models.logps.paths import VARLEN, Attention, Path, choose_path
from lit_align.models.logps.plain import packed_mask
from lit_align.models.logps.varlen import VarlenPlan, varlen_plan
from lit_align.models.router import ReadTokens
from lit_align.types import PairBatch, map_tensors

PACKED_ATTENTION = (NAME, "sdpa", "eager", "flex_attention", VARLEN)
"""Attention implementations that can restrict which packed tokens attend to which."""
_ONE_ROW: tuple[Path, ...] = ("segments", "varlen", "flex")
"""Paths whose tokens stand in one row, so that all sequences can share a prefix."""
_MASK_STEP = 16
"""Rows under a dense mask on a device are as wide as a multiple of it: of others each layer would pad its own copy."""


@dataclass(frozen=True)
class ModelInputs:
    """The inputs of one forward pass.

    Args:
        arguments: of the model.
        positions: for each scored token, the position of the token before it in the flattened rows.
        tokens: the scored tokens.
        reads: all tokens of the rows; None unless the losses of routers need them.
    """

    arguments: dict[str, Any]
    positions: Int[Tensor, " token"]
    tokens: ScoredTokens
    reads: ReadTokens | None = None

    def to(self, device: torch.device) -> ModelInputs:
        """Move all tensors to a device, from page-locked memory and without waiting for them."""
        return map_tensors(self, partial(_moved, device=device))

    def select(self, hidden: Tensor) -> Hidden:
        """Select the hidden states that predict the scored tokens.

        Args:
            hidden: all hidden states, ``[row, token, hidden]``.
        """
        return hidden.flatten(0, 1).index_select(0, self.positions)


def padded(batch: PairBatch, counts: bool = False) -> ModelInputs:
    """Build one padded row per sequence, leaving out absent sides.

    Args:
        batch: the pairs.
        counts: also say which tokens are read.
    """
    mask, width = scored(batch).flatten(0, 1), batch.input_ids.shape[-1]
    present = mask.any(-1).nonzero().squeeze(-1)
    present = present if len(present) else present.new_zeros(1)
    row, token = mask[present].nonzero(as_tuple=True)
    parts = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs = {name: part.flatten(0, 1)[present] for name, part in parts.items()}
    reads = None
    if counts:
        pair = (present // batch.input_ids.shape[1]).unsqueeze(-1).expand(-1, width)
        column = torch.arange(width, device=present.device)
        reads = ReadTokens(pair, (column < needed(batch).flatten()[present].unsqueeze(-1)).long())
    return ModelInputs(inputs, row * width + token - 1, _tokens(batch), reads)


def packed(batch: PairBatch, attention: Attention, share: bool, counts: bool = False) -> ModelInputs:
    """Build packed rows, without padding except where the form of the mask requires it.

    Args:
        batch: the pairs, at least one of which has a scored token.
        attention: determines the form of the mask.
        share: include the common prefix of a pair's sides, of two neighbouring responses of a batch with one side, or
            of all sequences of a row, only once.
        counts: also say which tokens are read; each then belongs to one row of the batch.
    """
    tokens = _tokens(batch)
    batch = neighbours_as_sides(batch) if share and not counts else batch
    path, _ = choose_path(attention, share)
    one_row = path in _ONE_ROW
    ahead: PackedAhead | None = batch.packing if share and one_row and not counts else None
    if ahead is None:
        shared = shared_tokens(batch) if share else batch.index.new_zeros(len(batch.index))
        packing = pack(batch, shared, common_prefix(batch) if share and one_row and not counts else 0)
    else:
        packing, tokens = ahead.packing, ahead.tokens
    if attention.rehearsed and path == "flex":  # not without its device; segments keep as much
        path = "segments"
    if path == "dense":
        inputs = _dense(packing, tokens, attention)
    elif path == "flex":
        inputs = _blocks(packing, tokens, attention.device)
    elif path == "ends":
        inputs = _ends(packing, tokens).to(attention.device)
    else:
        plan = None if path == "segments" else varlen_plan(packing) if ahead is None else ahead.plan
        inputs = _row(packing, tokens, plan, attention.device)
    return replace(inputs, reads=_reads(packing, attention, inputs)) if counts else inputs


def _row(packing: Packing, tokens: ScoredTokens, plan: VarlenPlan | None, device: torch.device) -> ModelInputs:
    """Build one row with a plan for kernels of variable length, or with its segments, in place of a mask."""
    move = partial(_moved, device=device)
    row = {"input_ids": move(packing.ids).unsqueeze(0), "position_ids": move(packing.positions).unsqueeze(0)}
    row["attention_mask"] = move(plan_of(packing)) if plan is None else map_tensors(plan, move).as_mask()
    return ModelInputs(row, move(packing.places), map_tensors(tokens, move))


def _reads(packing: Packing, attention: Attention, inputs: ModelInputs) -> ReadTokens:
    """Say which tokens stand where in packed rows, in the form that these have."""
    ids = inputs.arguments["input_ids"]
    shared = ~packing.second & (packing.positions < packing.segments[packing.pair, 2])
    values = (packing.pair, 1 + shared.long())
    if ids.shape[0] == 1 and attention.name in (NAME, "flex_attention", VARLEN):
        pair, count = (F.pad(value, (0, ids.shape[1] - len(value))).unsqueeze(0) for value in values)
    else:
        rows = replace(rows_of(packing, attention.row_tokens), width=ids.shape[1])
        pair, count = (rows.spread(value, 0) for value in values)
    return ReadTokens(pair.to(ids.device), count.to(ids.device))


def neighbours_as_sides(batch: PairBatch) -> PairBatch:
    """Return a batch of one side as pairs of neighbouring rows, so that responses to one prompt share it.

    The scored tokens keep their order. A batch of both sides is returned as it is.

    >>> ids, one = torch.arange(12).view(3, 1, 4), torch.ones(3)
    >>> neighbours_as_sides(PairBatch(ids, ids > 0, ids > 2, ids[..., 0] > 0, one, one.long())).input_ids.tolist()
    [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [0, 0, 0, 0]]]
    """
    rows, sides, _ = batch.input_ids.shape
    if sides > 1 or rows == 1:
        return batch

    def folded(part: Tensor) -> Tensor:
        return F.pad(part, (0, 0, 0, 0, 0, rows % 2)).view(-1, 2, part.shape[-1])

    return PairBatch(
        input_ids=folded(batch.input_ids),
        attention_mask=folded(batch.attention_mask),
        mask=folded(batch.mask),
        truncated=folded(batch.truncated.unsqueeze(-1)).squeeze(-1),
        weight=batch.weight[::2],
        index=batch.index[::2],
    )


@dataclass(frozen=True)
class PackedAhead:
    """What is computed of a batch before it is known which model reads it: the tokens of one row that share prompts.

    Args:
        packing: the row.
        tokens: the scored tokens.
        plan: for kernels of variable length.
    """

    packing: Packing
    tokens: ScoredTokens
    plan: VarlenPlan


def pack_ahead(batch: PairBatch) -> PairBatch:
    """Pack a batch in the worker that collates it, as one row that shares prompts; the reader takes it from there.

    Args:
        batch: in CPU memory, with its ``prompted`` and ``mismatched`` parts.
    """
    nested = {name: getattr(batch, name) for name in ("prompted", "mismatched")}
    packed_parts: dict[str, Any] = {name: None if part is None else pack_ahead(part) for name, part in nested.items()}
    if not bool(scored(batch).any()):
        return replace(batch, **packed_parts)
    packing = pack(batch, shared_tokens(batch), common_prefix(batch))
    return replace(batch, **packed_parts, packing=PackedAhead(packing, _tokens(batch), varlen_plan(packing)))


def _dense(packing: Packing, tokens: ScoredTokens, attention: Attention) -> ModelInputs:
    move = partial(_moved, device=attention.device)
    on_cpu = attention.device.type == "cpu" and not attention.rehearsed
    rows = map_tensors(rows_of(packing, attention.row_tokens), move)
    rows = rows if on_cpu else replace(rows, width=-(-rows.width // _MASK_STEP) * _MASK_STEP)
    packing, tokens = map_tensors(packing, move), map_tensors(tokens, move)
    mask: Tensor = visible(packing, rows)
    if attention.name == "eager" or not on_cpu:
        mask = additive(mask, attention.dtype)
    inputs = {
        "input_ids": rows.spread(packing.ids, 0),
        "position_ids": rows.spread(packing.positions, 0),
        "attention_mask": mask,
    }
    return ModelInputs(inputs, (rows.row * rows.width + rows.column)[packing.places], tokens)


def _ends(packing: Packing, tokens: ScoredTokens) -> ModelInputs:
    sizes = packing.segments[:, :2].flatten()
    sizes = sizes[sizes > 0]
    ends, longest = F.pad(sizes.cumsum(0), (1, 0)).to(torch.int32), int(sizes.max())
    inputs = {
        "input_ids": packing.ids.unsqueeze(0),
        "position_ids": packing.positions.unsqueeze(0),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }
    return ModelInputs(inputs, packing.places, tokens)


def _blocks(packing: Packing, tokens: ScoredTokens, device: torch.device) -> ModelInputs:
    move = partial(_moved, device=device)
    packing, tokens = map_tensors(packing, move), map_tensors(tokens, move)
    width = flex_width(len(packing.ids))
    room = (0, width - len(packing.ids))
    inputs = {
        "input_ids": F.pad(packing.ids, room).unsqueeze(0),
        "position_ids": F.pad(packing.positions, room).unsqueeze(0),
        "attention_mask": block_mask(packing, width),
    }
    return ModelInputs(inputs, packing.places, tokens)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    source = tensor.pin_memory() if device.type == "cuda" and not tensor.is_cuda else tensor
    return source.to(device, non_blocking=True)


def _tokens(batch: PairBatch) -> ScoredTokens:
    mask = scored(batch)
    rows = mask.flatten(0, 1)
    row, token = rows.nonzero(as_tuple=True)
    column = rows.cumsum(-1)[row, token] - 1
    return ScoredTokens(batch.input_ids[mask], mask.sum((1, 2)).cumsum(0).tolist(), row, column, packed_mask(batch))
