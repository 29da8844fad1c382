"""Reading batches with one model in the layout that is in use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lit_align.compat.transformers import attention_name
from lit_align.errors import check_range
from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.attention import NAME, original_attention, soft_cap, stands_in_for
from lit_align.models.logps.inputs import PACKED_ATTENTION, ModelInputs, packed, padded
from lit_align.models.logps.packing import LayoutName, needed
from lit_align.models.logps.paths import Attention, Path, choose_path
from lit_align.models.router import RouterBalance
from lit_align.types import PairBatch, PairTokens

CPU_TOKENS = 512
"""Tokens of a chunk on a CPU: enough to use its cores, few enough to keep activations in its caches."""


TILE_MB = (256.0, 2048.0)
"""Smallest and largest default of a tile of logits; the smallest is that of a CPU."""


def tile_of_card(memory: int) -> float:
    """Return the default megabytes of a tile for the bytes of memory of a CUDA device: a 64th, within ``TILE_MB``.

    >>> [tile_of_card(gigabytes * 2**30) for gigabytes in (8, 24, 80, 140)]
    [256.0, 384.0, 1280.0, 2048.0]
    """
    return min(max(memory / 64 / 2**20, TILE_MB[0]), TILE_MB[1])


@dataclass(frozen=True)
class ForwardPass:
    """How log-probabilities are computed. Nothing here changes them beyond rounding.

    Args:
        layout: ``shared`` reads a prompt once for both responses and ``packed`` reads each sequence by itself, both
            without padding; ``padded`` reads padded rows. ``auto`` takes the first of these that reproduces the
            model's own log-probabilities, which is checked on the first batch.
        tile_mb: most megabytes of logits that are held at once; fewer where a batch has fewer scored tokens. None uses
            256 on a CPU and a 64th of the memory of a CUDA device, from 256 to 2048: see `tile_megabytes`.
        row_tokens: tokens of a row where packed rows need a dense mask, which grows with their square; 0 uses the
            length of the longest pair.
        tokens_at_once: tokens of both sides that go through the policy at once in training. A larger batch is split
            into chunks whose gradients are accumulated, so that memory does not depend on the batch size. 0 sets no
            limit; None uses 512 on a CPU, where larger chunks are hardly faster, and no limit on other devices or
            where the objective would have to read its pairs twice.
        compile: compile the layers of every model with ``torch.compile``. The first steps then take a minute or
            more; this pays off in long runs on a GPU.
    """

    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    tile_mb: float | None = None
    row_tokens: int = 0
    tokens_at_once: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.tile_mb is not None and not self.tile_mb > 0:
            raise ValueError(f"ForwardPass: tile_mb is {self.tile_mb}; expected a size above 0")
        for name in ("row_tokens", "tokens_at_once"):
            check_range(f"ForwardPass: {name}", getattr(self, name), 0)

    def tile_megabytes(self, device: torch.device) -> float:
        """Return the megabytes of a tile of logits on a device.

        A tile is a few rows of a matrix product, and each reads all weights of the head: a fast device needs more rows
        to be kept busy. All of its memory counts, not what is free: the same card then gives the same tiles, and a
        resumed run rounds like the uninterrupted one. The numbers for CUDA are estimates; none was measured.

        >>> ForwardPass().tile_megabytes(torch.device("cpu"))
        256.0
        """
        if self.tile_mb is not None:
            return self.tile_mb
        if device.type != "cuda":
            return TILE_MB[0]
        return tile_of_card(torch.cuda.get_device_properties(device).total_memory)

    def chunk_tokens(self, device: str, batch_level: bool) -> int:
        """Return the number of tokens that go through the policy at once in training; 0 for no limit.

        Args:
            device: type of the device.
            batch_level: whether a pair's loss depends on other pairs.

        >>> ForwardPass().chunk_tokens("cpu", batch_level=False)
        512
        """
        if self.tokens_at_once is not None:
            return self.tokens_at_once
        return CPU_TOKENS if device == "cpu" and not batch_level else 0


class ModelReader(ABC):
    """Reads batches with one model, in a layout that can be changed.

    Args:
        model: a transformers model, with or without an adapter or a score head.
        how: layout and sizes. With ``auto``, rows are padded until ``choose_layout`` finds a faster layout.
        rehearsed: whether inputs are built as for a CUDA device, although they stay on the CPU.
    """

    def __init__(self, model: nn.Module, how: ForwardPass = ForwardPass(), rehearsed: bool = False) -> None:
        self.model = model
        self.how = how
        self.rehearsed = rehearsed
        self.refused: frozenset[Path] = frozenset()
        self.layout: LayoutName = "padded"
        self.reach: int | None = None
        self.router: RouterBalance | None = None
        self._attention = original_attention(model)
        if how.layout != "auto":
            self.use(how.layout)

    @property
    @abstractmethod
    def obstacle(self) -> str | None:
        """Why the model can only be read in the ``plain`` layout; None if nothing prevents the others."""

    @abstractmethod
    def probe(self, batch: PairBatch) -> PairTokens:
        """Return a differentiable number for each scored token, by which layouts are compared."""

    def use(self, layout: LayoutName, reach: int | None = None, refused: frozenset[Path] | None = None) -> None:
        """Use a layout from now on.

        Args:
            layout: the layout.
            reach: batches with longer sequences are padded; None sets no limit.
            refused: paths of attention that do not work; None for those known so far.
        """
        self.refused = self.refused if refused is None else refused
        if layout in ("shared", "packed") and stands_in_for(self.model, self._attention):
            base_of(self.model).set_attn_implementation(NAME)
        elif layout in ("padded", "plain") and attention_name(base_of(self.model)) == NAME:
            base_of(self.model).set_attn_implementation(self._attention)
        self.layout, self.reach = layout, reach

    def _inputs(self, batch: PairBatch, device: torch.device) -> ModelInputs:
        """Build the model's inputs in the layout in use, padded where a sequence is longer than its reach.

        Args:
            batch: in CPU memory, where lengths are known without waiting for a device.
            device: of the inputs.
        """
        longest = int(needed(batch).max())
        packs = self.layout in ("shared", "packed") and longest > 0
        name = attention_name(base_of(self.model))
        if not packs or name not in PACKED_ATTENTION or (self.reach is not None and longest > self.reach):
            return padded(batch, self.router is not None).to(device)
        return packed(batch, self._attention_on(device), self.layout == "shared", self.router is not None)

    def path(self, device: torch.device) -> tuple[Path, str]:
        """Return how packed tokens attend on a device in the layout in use, and why; see `choose_path`."""
        return choose_path(self._attention_on(device), self.layout == "shared")

    def refuse_path(self, device: torch.device) -> bool:
        """Leave out the path in use from now on; return False where it is the last one.

        Args:
            device: of the batches.
        """
        path, _ = self.path(device)
        can_change = attention_name(base_of(self.model)) == NAME and path in ("varlen", "flex")
        self.refused |= {path} if can_change else set()
        return can_change

    def _attention_on(self, device: torch.device) -> Attention:
        base = base_of(self.model)
        config = base.config.get_text_config()
        size, heads = (getattr(config, name, None) for name in ("head_dim", "num_attention_heads"))
        if size is None and heads:
            size = config.hidden_size // heads
        dtype, kind = next(self.model.parameters()).dtype, device.type
        if torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        return Attention(
            name=attention_name(base),
            dtype=dtype,
            device=device,
            head_size=size or 1,
            soft_cap=soft_cap(self.model) is not None,
            row_tokens=self.how.row_tokens,
            refused=self.refused,
            rehearsed=self.rehearsed,
        )
