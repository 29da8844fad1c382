"""Attention of packed tokens: which see which, in the forms that implementations of attention expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_align.compat.transformers import attention_name
from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.packing import Packing, Rows
from lit_align.models.logps.varlen import varlen_attention

NAME = "lit_align_segments"
"""Its name in transformers: like ``sdpa``, but it reads a plan where others read a mask."""
FLEX_BLOCK = 128
"""Tokens of a block of FlexAttention, whose rows are whole blocks."""
_WIDTHS = 8
"""Widths of rows of FlexAttention between a power of two and the next one."""


def plan_of(packing: Packing) -> Int[Tensor, "1 1 segment 3"]:
    """Return the segments of one packed row, the prefix before the pairs, to be passed in place of a mask.

    Models pass a mask of four axes on to their attention unchanged, also when a checkpointed layer runs again.
    """
    prefix = packing.segments.new_tensor([[packing.prefix, 0, 0]])
    return torch.cat([prefix, packing.segments]).view(1, 1, -1, 3)


def visible(packing: Packing, rows: Rows) -> Bool[Tensor, "row 1 query key"]:
    """Build a dense mask, true where a query sees a key; without a prefix, since rows cannot see each other."""
    pair = rows.spread(packing.pair, -1)
    second = rows.spread(packing.second.long(), 0) > 0
    position = rows.spread(packing.positions, 0)
    shared = torch.cat([packing.segments[:, 2], packing.segments.new_zeros(1)])[pair]  # padding is pair -1
    same = pair.unsqueeze(-1) == pair.unsqueeze(-2)
    causal = position.unsqueeze(-1) >= position.unsqueeze(-2)
    same_side = second.unsqueeze(-1) == second.unsqueeze(-2)
    shared_first = second.unsqueeze(-1) & ~second.unsqueeze(-2) & (position < shared).unsqueeze(-2)
    itself = torch.eye(pair.shape[1], dtype=torch.bool, device=pair.device)
    present = (pair >= 0).unsqueeze(-1)
    return ((same & causal & (same_side | shared_first) & present) | itself).unsqueeze(1)


def additive(mask: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Tensor:
    """Convert a dense mask to numbers to add to the scores.

    ``eager`` attention expects these. On devices they save each layer a copy: scaled dot-product attention converts a
    mask of truth values at every call, and keeps the result for the backward pass.

    Args:
        mask: true where a query sees a key.
        dtype: that scores are computed in.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def flex_width(tokens: int) -> int:
    """Return the width of a row of FlexAttention: whole blocks, and few different numbers, which are compiled each.

    >>> [flex_width(tokens) for tokens in (1, 129, 1500, 2049)]
    [128, 256, 1536, 2304]
    """
    step = max(FLEX_BLOCK, (1 << (tokens - 1).bit_length()) // (2 * _WIDTHS))
    return -(-tokens // step) * step


def block_mask(packing: Packing, width: int) -> BlockMask:
    """Build the mask of FlexAttention: one row of ``width`` tokens, the last of them padding.

    The rule reads nothing but tensors of that width: numbers in it would be compiled anew for every batch.
    """
    room = width - len(packing.ids)
    pair = F.pad(packing.pair, (0, room), value=-1)
    second = F.pad(packing.second, (0, room), value=False)
    position = F.pad(packing.positions, (0, room))
    shared = F.pad(packing.segments[packing.pair, 2] + packing.prefix, (0, room))
    device = packing.ids.device
    in_prefix = torch.arange(width, device=device) < packing.prefix
    return create_block_mask(
        lambda row, head, query, key: (
            ((pair[query] == pair[key]) | ((pair[query] > 0) & in_prefix[key]))
            & (key <= query)
            & ((second[query] == second[key]) | (second[query] & (position[key] < shared[query])))
        ),
        None,
        None,
        width,
        width,
        device=str(device),
        _compile=device.type == "cuda",
    )


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention of one packed row, segment by segment; with an ordinary mask, scaled dot-product attention.

    Args:
        module: the attention layer.
        query: ``[row, head, token, channel]``.
        key: likewise; may have fewer heads.
        value: likewise.
        attention_mask: a plan (``plan_of``, or ``varlen_plan`` on devices), a mask, also one of blocks, or None.
        options: what models pass to their attention; windows and soft caps are applied, additions are refused.
    """
    if not isinstance(attention_mask, Tensor) or attention_mask.dtype != torch.int64:
        return _masked(module, query, key, value, attention_mask, **options)
    for name in ("position_bias", "s_aux"):
        if options.get(name) is not None:
            raise NotImplementedError(f"attention by segments knows no {name}")
    attend = _attention(module, options)
    (prefix, _, _), *segments = attention_mask[0, 0].tolist()
    sizes = [prefix, *(size for *lengths, _ in segments for size in lengths)]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    outputs = [attend(queries[0], keys[0], values[0])] if prefix else []
    for pair, (_, _, shared) in enumerate(segments):
        first, second = 2 * pair + 1, 2 * pair + 2
        if sizes[first]:
            seen = [_joined(part[0], part[first]) for part in (keys, values)]
            outputs.append(attend(queries[first], *seen))
        if sizes[second]:
            seen = [_joined(part[0], part[first][:, :, :shared], part[second]) for part in (keys, values)]
            outputs.append(attend(queries[second], *seen))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _joined(*parts: Tensor) -> Tensor:
    parts = tuple(part for part in parts if part.shape[2])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _masked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention with a mask of blocks, a plan for kernels of variable length, or an ordinary mask."""
    if isinstance(mask, BlockMask):
        return flex_attention_forward(module, query, key, value, mask, **options)[0], None
    if mask is not None and mask.dtype == torch.int32:
        return varlen_attention(query, key, value, mask, **options), None
    cap = options.get("softcap")
    if cap is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], None, query.device)
    how = (options.get("scaling") or query.shape[-1] ** -0.5, cap, float(options.get("dropout") or 0.0))
    return _capped(query, key, value, mask, how).transpose(1, 2).contiguous(), None


def original_attention(model: nn.Module) -> str:
    """Return the implementation that a model was loaded with."""
    base: Any = base_of(model)
    name = attention_name(base)
    return ("eager" if soft_cap(model) else "sdpa") if name == NAME else name


def stands_in_for(model: nn.Module, name: str) -> bool:
    """Whether segments may replace an implementation: ``sdpa``, or ``eager`` where a soft cap asks for it."""
    return name == "sdpa" or (name == "eager" and soft_cap(model) is not None)


def soft_cap(model: nn.Module) -> float | None:
    """Return the soft cap of a model's attention scores; None where there is none."""
    base: Any = base_of(model)
    cap: float | None = getattr(base.config.get_text_config(), "attn_logit_softcapping", None)
    return cap


def _attention(module: nn.Module, options: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return causal attention of queries that end where the keys end, with the layer's options."""
    scale, window, cap = options.get("scaling"), options.get("sliding_window"), options.get("softcap")
    dropout = float(options.get("dropout") or 0.0)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = causal_mask(query.shape[2], key.shape[2], window, query.device)
        if cap is not None:
            return _capped(query, key, value, mask, (scale or query.shape[-1] ** -0.5, cap, dropout))
        whole = query.shape[2] == key.shape[2] and (window is None or key.shape[2] <= window)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if whole else mask,
            is_causal=whole,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    return attend


def causal_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Bool[Tensor, "query key"]:
    """Build the mask of the last ``queries`` of ``keys`` tokens: each sees itself and up to ``window`` − 1 before it.

    >>> causal_mask(2, 4, 2, torch.device("cpu")).int().tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    before = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
    return mask if window is None else mask.triu(before - window + 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, how: tuple[float, float, float]) -> Tensor:
    """Compute attention with softly capped scores, as in Gemma 2."""
    scale, cap, dropout = how
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = cap * torch.tanh(query @ key.transpose(2, 3) * scale / cap)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
    return F.dropout(weights.to(query.dtype), dropout) @ value


AttentionInterface.register(NAME, torch.compiler.disable(segment_attention))
AttentionMaskInterface.register(NAME, sdpa_mask)
