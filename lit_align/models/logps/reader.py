"""A reader gives a batch to one model in the layout that is in use; what it makes of the result is its own affair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lit_align.models.lm_head.patch import base_of
from lit_align.models.logps.attention import NAME, original_attention, stands_in_for
from lit_align.models.logps.inputs import PACKED_ATTENTION, Attention, Reading, packed, padded
from lit_align.models.logps.packing import LayoutName, needed
from lit_align.types import PairBatch, PairTokens

CPU_TOKENS = 512
"""Tokens at once on a CPU: enough to fill its cores, few enough to keep what backward needs in its caches."""


@dataclass(frozen=True)
class ForwardPass:
    """How log-probabilities are computed; nothing here changes them beyond rounding.

    Args:
        layout: ``shared`` reads a prompt once for both responses, ``packed`` each sequence by itself, both without
            padding; ``padded`` reads padded rows. ``auto`` takes the first of these that gives the model's own
            log-probabilities, which is tried on the first batch.
        tile_mb: megabytes of logits that are held at once.
        row_tokens: tokens of a row where packed rows need a dense mask, which grows with their square; 0 takes
            rows as long as the longest pair.
        tokens_at_once: tokens, of both sides, that go through the policy at once in training; a batch with more is
            taken in portions whose gradients add up, so that its size does not set the memory. 0 for no limit; None
            for 512 on a CPU, where more at once is hardly faster, and for no limit on other devices, nor where the
            objective would have to read its pairs twice for it.
        compile: compile the layers of every model that is read (``torch.compile``). The first steps then take a
            minute or more; it pays on a GPU, in long runs.
    """

    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    tile_mb: float = 64.0
    row_tokens: int = 0
    tokens_at_once: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if not self.tile_mb > 0:
            raise ValueError(f"ForwardPass: tile_mb is {self.tile_mb}; expected a size above 0")
        for name in ("row_tokens", "tokens_at_once"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"ForwardPass: {name} is {getattr(self, name)}; expected 0 or more")

    def portion(self, device: str, across_pairs: bool) -> int:
        """Tokens that go through the policy at once in training; 0 for no limit.

        Args:
            device: type of the device.
            across_pairs: whether pairs depend on each other.

        >>> ForwardPass().portion("cpu", across_pairs=False)
        512
        """
        if self.tokens_at_once is not None:
            return self.tokens_at_once
        return CPU_TOKENS if device == "cpu" and not across_pairs else 0


class Reader(ABC):
    """Reads batches with one model, which is called as ever: sharding, adapters and hooks work as they do elsewhere.

    Args:
        model: of transformers, with or without an adapter or a score head.
        how: layout and sizes. ``auto`` stays with padded rows until ``choose_layout`` has found a faster layout.
    """

    def __init__(self, model: nn.Module, how: ForwardPass = ForwardPass()) -> None:
        self.model = model
        self.how = how
        self.layout: LayoutName = "padded"
        self.reach: int | None = None
        self._attention = original_attention(model)
        if how.layout != "auto":
            self.use(how.layout)

    @property
    @abstractmethod
    def lacks(self) -> str | None:
        """What keeps the model from any layout but ``plain``; None if nothing does."""

    @abstractmethod
    def probed(self, batch: PairBatch) -> PairTokens:
        """A number for each scored token, by which layouts are compared; carries the gradient if one is recorded.

        Args:
            batch: the pairs.
        """

    def use(self, layout: LayoutName, reach: int | None = None) -> None:
        """Take a layout from here on.

        Args:
            layout: which.
            reach: a batch with a longer sequence is padded; None for no such limit.
        """
        if layout in ("shared", "packed") and stands_in_for(self.model, self._attention):
            base_of(self.model).set_attn_implementation(NAME)
        elif layout in ("padded", "plain") and base_of(self.model).config._attn_implementation == NAME:
            base_of(self.model).set_attn_implementation(self._attention)
        self.layout, self.reach = layout, reach

    def _read(self, batch: PairBatch) -> Reading:
        """The batch in the layout that is in use, or padded where that layout does not reach."""
        longest = int(needed(batch).max())
        packs = self.layout in ("shared", "packed") and longest > 0
        name = base_of(self.model).config._attn_implementation
        if not packs or name not in PACKED_ATTENTION or (self.reach is not None and longest > self.reach):
            return padded(batch)
        dtype = next(self.model.parameters()).dtype
        return packed(batch, Attention(name, dtype, self.how.row_tokens), share=self.layout == "shared")
