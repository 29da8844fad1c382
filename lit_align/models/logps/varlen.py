"""Attention of packed tokens by kernels for sequences of variable length, which read no mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int32
from torch import Tensor

from lit_align.models.logps.packing import Packing

LARGEST_HEAD = 256
"""Most channels of a head that the kernels read, a multiple of ``HEAD_STEP``."""
HEAD_STEP = 8
FIRST_CAPABILITY = (8, 0)
"""The oldest generation of cards with these kernels: Ampere."""
_BITS = 16


@dataclass(frozen=True)
class Sequences:
    """What a kernel must know beside queries, keys and values of all sequences, ``[token, head, channel]``.

    Args:
        query_ends: 0, and the number of queries up to each sequence's last.
        key_ends: likewise of keys, of which a sequence has at least as many; the last query sees all of them.
        longest: keys of the longest sequence.
        scale: of the scores; None for one over the root of the channels.
        window: tokens that a query sees, itself included; None for all.
    """

    query_ends: Int32[Tensor, " end"]
    key_ends: Int32[Tensor, " end"]
    longest: int
    scale: float | None = None
    window: int | None = None

    @property
    def arguments(self) -> tuple[Tensor, Tensor, int, int]:
        """The arguments that both kernels take behind the values."""
        return self.query_ends, self.key_ends, self.longest, self.longest

    @property
    def left_right(self) -> tuple[int, int]:
        """How many tokens before and behind itself a query sees; −1 for all.

        >>> ends = torch.zeros(1, dtype=torch.int32)
        >>> Sequences(ends, ends, 9).left_right, Sequences(ends, ends, 9, window=6).left_right
        ((-1, 0), (5, 0))
        """
        return (-1 if self.window is None else self.window - 1, 0)


Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Sequences], Tensor]
"""From queries, keys and values to outputs, causal from the bottom right of each sequence."""


@dataclass(frozen=True)
class VarlenPlan:
    """The sequences of one packed row.

    Args:
        numbers: the ends of the queries of each sequence, the ends of its keys, and the places of all keys.
        longest: the most keys of a sequence.
        count: number of sequences.
    """

    numbers: Int32[Tensor, " number"]
    longest: int
    count: int

    def as_mask(self) -> Int32[Tensor, "1 longest sequence number"]:
        """Return the plan in the form in which models pass it on in place of a mask.

        The numbers are repeated along two axes, without memory, whose sizes are all that the host must know. Models
        pass a mask of four axes on unchanged, also when a checkpointed layer runs again.
        """
        return self.numbers.expand(1, self.longest, self.count, -1)


def varlen_plan(packing: Packing) -> VarlenPlan:
    """Return the sequences of one packed row: a query's is its segment, and its keys are what the segment sees.

    Args:
        packing: in CPU memory, with at least one token.
    """
    prefix, start = torch.arange(packing.prefix), packing.prefix
    queries, keys = ([packing.prefix], [prefix]) if packing.prefix else ([], [])
    for first, second, shared in packing.segments.tolist():
        own = torch.arange(start, start + first + second)
        if first:
            queries.append(first)
            keys.append(torch.cat([prefix, own[:first]]))
        if second:
            queries.append(second)
            keys.append(torch.cat([prefix, own[:shared], own[first:]]))
        start += first + second
    ends = [F.pad(torch.tensor(sizes).cumsum(0), (1, 0)) for sizes in (queries, [len(places) for places in keys])]
    return VarlenPlan(torch.cat([*ends, *keys]).to(torch.int32), max(map(len, keys)), len(queries))


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, plan: Tensor, **options: Any) -> Tensor:
    """Compute attention of one packed row, as ``[row, token, head, channel]``.

    Args:
        query: ``[row, head, token, channel]``.
        key: likewise; may have fewer heads.
        value: likewise.
        plan: see ``VarlenPlan.as_mask``.
        options: what models pass to their attention: scale and window are applied, additions are refused.
    """
    for name in ("position_bias", "s_aux", "softcap", "dropout"):
        if options.get(name) is not None and not (name == "dropout" and options[name] == 0):
            raise NotImplementedError(f"attention of variable length knows no {name}")
    _, longest, count, _ = plan.shape
    numbers = plan[0, 0, 0]
    ends, places = numbers[: 2 * (count + 1)].view(2, -1), numbers[2 * (count + 1) :]
    dtype, kind = query.dtype, query.device.type
    if torch.is_autocast_enabled(kind):  # rotary positions have widened queries and keys
        dtype = torch.get_autocast_dtype(kind)
    queries, keys, values = (part[0].transpose(0, 1).to(dtype) for part in (query, key, value))
    keys, values = (part.index_select(0, places) for part in (keys, values))
    sequences = Sequences(ends[0], ends[1], longest, options.get("scaling"), options.get("sliding_window"))
    return kernel()(queries.contiguous(), keys, values, sequences).unsqueeze(0)


def varlen_obstacle(dtype: torch.dtype, head_size: int, rehearsed: bool) -> str | None:
    """Return why a CUDA device cannot use these kernels; None if nothing prevents it.

    Args:
        dtype: of queries and keys.
        head_size: channels of a head.
        rehearsed: whether the device is not there: a card of today is assumed.
    """
    if torch.finfo(dtype).bits != _BITS:
        return f"kernels of variable length compute in 16 bits, not in {str(dtype).removeprefix('torch.')}"
    if head_size % HEAD_STEP or head_size > LARGEST_HEAD:
        return f"kernels of variable length have no heads of {head_size} channels"
    if rehearsed:
        return None
    if torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        return "kernels of variable length need a card of the Ampere generation or a later one"
    if not _torch_has_kernel() and find_spec("flash_attn") is None:
        return "PyTorch was built without flash attention, and flash-attn is not installed"
    return None


def _torch_has_kernel() -> bool:
    return not torch.cuda.is_available() or torch.backends.cuda.is_flash_attention_available()


@cache
def kernel() -> Kernel:
    """Return the kernel in use: PyTorch's own, or that of flash-attn where PyTorch was built without."""
    return _torch_kernel if _torch_has_kernel() else _flash_attn_kernel


def _torch_kernel(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    attention: Any = import_module("torch.nn.attention.varlen").varlen_attn  # slow to import
    options: dict[str, Any] = {"scale": sequences.scale, "window_size": sequences.left_right}
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(attention).parameters:
            options["enable_gqa"] = True
        else:  # in PyTorch 2.11
            key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    output: Tensor = attention(query, key, value, *sequences.arguments, **options)
    return output


def _flash_attn_kernel(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    options = {"softmax_scale": sequences.scale, "causal": True, "window_size": sequences.left_right}
    package: Any = import_module("flash_attn")
    output: Tensor = package.flash_attn_varlen_func(query, key, value, *sequences.arguments, **options)
    return output
