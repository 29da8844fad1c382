"""The choice of how packed tokens attend to each other: by segments, by kernels of variable length, under masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch.utils._triton import has_triton

from lit_align.models.logps.attention import NAME
from lit_align.models.logps.varlen import varlen_obstacle

Path: TypeAlias = Literal["segments", "varlen", "flex", "ends", "dense"]
"""``segments``: one product for each segment. ``varlen``: kernels for sequences of variable length. ``flex``:
FlexAttention under a mask of blocks. ``ends``: flash attention of transformers, which shares nothing. ``dense``: a
mask with a number for each query and key."""
VARLEN = "flash_attention_2"
"""The implementation that takes the boundaries of sequences in a row instead of a mask."""
_LEAST_HEAD = 16
"""Fewest channels of a head that FlexAttention's kernels read."""


@dataclass(frozen=True)
class Attention:
    """The attention of a model, as far as the form of its inputs depends on it.

    Args:
        name: implementation in transformers.
        dtype: that queries and keys are computed in.
        device: where it is computed.
        head_size: channels of a head.
        soft_cap: whether scores have a soft cap.
        row_tokens: tokens of a row where the mask is dense; 0 for as many as the longest pair has.
        refused: paths that the layout check has found not to work.
        rehearsed: whether the inputs are those of a CUDA device that is not there, on the CPU.
    """

    name: str
    dtype: torch.dtype
    device: torch.device
    head_size: int = 64
    soft_cap: bool = False
    row_tokens: int = 0
    refused: frozenset[Path] = frozenset()
    rehearsed: bool = False


def choose_path(attention: Attention, share: bool) -> tuple[Path, str]:
    """Choose how packed tokens attend, and say why: the first of the paths that the attention can take.

    Kernels of variable length come first on CUDA: they skip what a mask would hide, read keys of grouped queries once
    and keep no mask for the backward pass. FlexAttention skips blocks that are hidden, and has to be compiled. A dense
    mask works everywhere and skips nothing.

    Args:
        attention: of a model.
        share: whether tokens that sequences have in common are stored once.
    """
    if attention.name == "flex_attention":
        return "flex", "the model's own attention is flex_attention"
    if attention.name == VARLEN and not share:
        return "ends", f"the model's own attention is {VARLEN}"
    if attention.name != NAME:
        return "dense", f"attention {attention.name} takes dense masks"
    if attention.device.type == "cpu" and not attention.rehearsed:
        return "segments", "a CPU is fastest with one product for each segment"
    obstacle = _varlen_obstacle(attention)
    if obstacle is None:
        return "varlen", "kernels of variable length skip what a mask would hide"
    no_flex = _flex_obstacle(attention)
    if no_flex is None:
        return "flex", obstacle
    return "dense", f"{obstacle}; {no_flex}"


def _varlen_obstacle(attention: Attention) -> str | None:
    if "varlen" in attention.refused:
        return "kernels of variable length do not give the model's own numbers"
    if not attention.rehearsed and attention.device.type != "cuda":
        return f"kernels of variable length are for CUDA, not for {attention.device.type}"
    if attention.soft_cap:
        return "kernels of variable length know no soft cap"
    return varlen_obstacle(attention.dtype, attention.head_size, attention.rehearsed)


def _flex_obstacle(attention: Attention) -> str | None:
    if "flex" in attention.refused:
        return "FlexAttention does not give the model's own numbers"
    if attention.head_size < _LEAST_HEAD:
        return f"FlexAttention has no heads of {attention.head_size} channels"
    if attention.rehearsed:
        return None
    if attention.device.type != "cuda":
        return f"FlexAttention is compiled for CUDA, not for {attention.device.type}"
    return None if has_triton() else "FlexAttention needs triton, which is not installed"
