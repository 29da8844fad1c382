"""Attention inside segments: which packed tokens see which, in the forms that implementations of attention read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.packing import Packing, Rows

NAME = "lit_align_segments"
"""What transformers knows this attention by: like ``sdpa``, and it reads a plan where others read a mask."""
FLEX_BLOCK = 128
"""FlexAttention's rows are whole blocks of so many tokens."""


def plan_of(packing: Packing) -> Int[Tensor, "1 1 block 3"]:
    """The blocks of one packed row in place of a mask, the opening before the pairs.

    Models hand a mask of four axes to their attention as it is, also when a checkpointed layer runs again.
    """
    opening = packing.blocks.new_tensor([[packing.opening, 0, 0]])
    return torch.cat([opening, packing.blocks]).view(1, 1, -1, 3)


def visible(packing: Packing, rows: Rows) -> Bool[Tensor, "row 1 query key"]:
    """The same as a dense mask: true where a query sees a key. No opening: rows cannot see each other."""
    pair = rows.spread(packing.pair, -1)
    tail = rows.spread(packing.tail.long(), 0) > 0
    position = rows.spread(packing.positions, 0)
    shared = torch.cat([packing.blocks[:, 2], packing.blocks.new_zeros(1)])[pair]  # padding is pair -1
    same = pair.unsqueeze(-1) == pair.unsqueeze(-2)
    causal = position.unsqueeze(-1) >= position.unsqueeze(-2)
    side = tail.unsqueeze(-1) == tail.unsqueeze(-2)
    prefix = tail.unsqueeze(-1) & ~tail.unsqueeze(-2) & (position < shared).unsqueeze(-2)
    alone = torch.eye(pair.shape[1], dtype=torch.bool, device=pair.device)
    there = (pair >= 0).unsqueeze(-1)
    return ((same & causal & (side | prefix) & there) | alone).unsqueeze(1)


def additive(mask: Bool[Tensor, "*axes"], dtype: torch.dtype) -> Tensor:
    """A dense mask as numbers to add, for ``eager`` attention."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def block_mask(packing: Packing, width: int) -> Any:
    """The same for FlexAttention: one row of ``width`` tokens, the last of them padding."""
    from torch.nn.attention.flex_attention import create_block_mask

    room = width - len(packing.ids)
    pair = F.pad(packing.pair, (0, room), value=-1)
    tail = F.pad(packing.tail, (0, room), value=False)
    position = F.pad(packing.positions, (0, room))
    shared = F.pad(packing.blocks[packing.pair, 2] + packing.opening, (0, room))
    opening = packing.opening

    device = packing.ids.device
    return create_block_mask(
        lambda row, head, query, key: (
            ((pair[query] == pair[key]) | ((pair[query] > 0) & (key < opening)))
            & (key <= query)
            & ((tail[query] == tail[key]) | (tail[query] & (position[key] < shared[query])))
        ),
        None,
        None,
        width,
        width,
        device=str(device),
        _compile=device.type == "cuda",
    )


def segment_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of one packed row, segment by segment; with an ordinary mask, scaled dot-product attention.

    Args:
        module: the attention layer.
        query: ``[row, head, token, channel]``.
        key: likewise; may have fewer heads.
        value: likewise.
        attention_mask: a plan (``plan_of``), a mask, or None.
        options: what models tell their attention; windows and soft caps are honoured, additions are refused.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return _masked(module, query, key, value, attention_mask, **options)
    for name in ("position_bias", "s_aux"):
        if options.get(name) is not None:
            raise NotImplementedError(f"attention by segments knows no {name}")
    attend = _attention(module, options)
    (opening, _, _), *blocks = attention_mask[0, 0].tolist()
    sizes = [opening, *(size for head, tail, _ in blocks for size in (head, tail))]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    found = [attend(queries[0], keys[0], values[0])] if opening else []
    for pair, (_, _, shared) in enumerate(blocks):
        head, tail = 2 * pair + 1, 2 * pair + 2
        if sizes[head]:
            seen = [_joined(part[0], part[head]) for part in (keys, values)]
            found.append(attend(queries[head], *seen))
        if sizes[tail]:
            seen = [_joined(part[0], part[head][:, :, :shared], part[tail]) for part in (keys, values)]
            found.append(attend(queries[tail], *seen))
    return torch.cat(found, dim=2).transpose(1, 2).contiguous(), None


def _joined(*parts: Tensor) -> Tensor:
    there = [part for part in parts if part.shape[2]]
    return there[0] if len(there) == 1 else torch.cat(there, dim=2)


def _masked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention with an ordinary mask."""
    cap = options.get("softcap")
    if cap is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], None, query.device)
    how = (options.get("scaling") or query.shape[-1] ** -0.5, cap, float(options.get("dropout") or 0.0))
    return _capped(query, key, value, mask, how).transpose(1, 2).contiguous(), None


def original_attention(model: nn.Module) -> str:
    """The implementation that a model was loaded with."""
    base: Any = base_of(model)
    name: str = base.config._attn_implementation
    return ("eager" if _cap(model) else "sdpa") if name == NAME else name


def stands_in_for(model: nn.Module, name: str) -> bool:
    """Whether segments may replace an implementation: ``sdpa``, or ``eager`` where a soft cap asks for it."""
    return name == "sdpa" or (name == "eager" and _cap(model) is not None)


def _cap(model: nn.Module) -> float | None:
    base: Any = base_of(model)
    cap: float | None = getattr(base.config.get_text_config(), "attn_logit_softcapping", None)
    return cap


def _attention(module: nn.Module, options: dict[str, Any]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Causal attention of queries that end where the keys end, with the layer's options."""
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
    """What the last ``queries`` of ``keys`` neighbouring tokens see: themselves and at most ``window`` − 1 before.

    >>> causal_mask(2, 4, 2, torch.device("cpu")).int().tolist()
    [[0, 1, 1, 0], [0, 0, 1, 1]]
    """
    before = keys - queries
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(before)
    return mask if window is None else mask.triu(before - window + 1)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, how: tuple[float, float, float]) -> Tensor:
    """Attention whose scores are softly capped, as in Gemma 2."""
    scale, cap, dropout = how
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scores = cap * torch.tanh(query @ key.transpose(2, 3) * scale / cap)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, dtype=torch.float32)
    return F.dropout(weights.to(query.dtype), dropout) @ value


AttentionInterface.register(NAME, torch.compiler.disable(segment_attention))
AttentionMaskInterface.register(NAME, sdpa_mask)
