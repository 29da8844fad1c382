"""A stand-in for flash attention on a CPU: 16 bits only, causal, sequences by their ends."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def flash_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention as ``flash_attention_2`` does: with the ends of sequences, or a mask of two axes.

    As in transformers, what rotary positions have widened to float32 is cast back under autocast.
    """
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    assert query.dtype == torch.bfloat16, "FlashAttention only support fp16 and bf16 data type"
    keys, values = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    ends = options.get("cu_seq_lens_q")
    if ends is not None:
        sizes = ends.diff().tolist()
        parts = zip(*(part.split(sizes, 2) for part in (query, keys, values)), strict=True)
        output = torch.cat([F.scaled_dot_product_attention(*part, is_causal=True) for part in parts], 2)
    else:
        width = query.shape[2]
        mask = torch.ones(width, width, dtype=torch.bool).tril()
        mask = mask if attention_mask is None else mask & attention_mask.bool()[:, None, None, :]
        mask = mask | torch.eye(width, dtype=torch.bool)
        output = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return output.transpose(1, 2).contiguous(), None
