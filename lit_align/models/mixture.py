"""Sampling from a policy mixed with its reference, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, final

import torch
from transformers import LogitsProcessor
from typing_extensions import override

from lit_align.models.generation import CachedGenerator, GenerationRequest
from lit_align.models.lm_head.patch import base_of
from lit_align.models.reference.base import Reference
from lit_align.models.sampling import Sampling


@final
@dataclass(frozen=True)
class MixtureGenerator(CachedGenerator):
    """Generates with ``π^(1-s) π_ref^s``, normalised at each token; both models keep a cache.

    Args:
        reference: π_ref.
        share: s, strictly between 0 and 1: at the ends, generate with one of the models.
    """

    reference: Reference = field(kw_only=True)
    share: float = field(kw_only=True)

    @override
    def processors(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[LogitsProcessor]:
        prompts = [request.prompt for request in requests]
        return [Mixing(self.reference, self.share, prompts), *super().processors(requests, sampling)]


class Mixing(LogitsProcessor):
    """Mixes the logits of the model that generates with those of the reference.

    Args:
        reference: read once per token, with a cache of its own where its model returns one.
        share: weight of its logits.
        prompts: of the batch, padded on the left.
    """

    def __init__(self, reference: Reference, share: float, prompts: Sequence[Sequence[int]]) -> None:
        self.reference = reference
        self.share = share
        width = max(map(len, prompts))
        self._padding = torch.tensor([[width - len(prompt)] for prompt in prompts])
        self._cache: Any = None
        self._read = 0

    @torch.no_grad()
    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the mixed logits of the next token."""
        self._padding = self._padding.to(input_ids.device, non_blocking=True)
        position = torch.arange(input_ids.shape[1], device=input_ids.device) - self._padding
        new = slice(self._read, None)
        inputs: dict[str, Any] = {"input_ids": input_ids[:, new], "attention_mask": (position >= 0).long()}
        if self._cache is not None:
            inputs["past_key_values"] = self._cache
        with self.reference.active() as model:
            optional = {"position_ids": position.clamp_min(0)[:, new], "logits_to_keep": 1}
            known = signature(base_of(model).forward).parameters
            inputs |= {name: value for name, value in optional.items() if name in known}
            output: Any = model(**inputs, use_cache=True)
        self._cache = getattr(output, "past_key_values", None)
        self._read = 0 if self._cache is None else input_ids.shape[1]
        return torch.lerp(scores.float(), output.logits[:, -1].float(), self.share)
