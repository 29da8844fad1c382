"""Responses sampled from a causal language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from lit_align.models.sharding import together


@dataclass(frozen=True)
class Sampling:
    """How a response is drawn.

    Args:
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_p: share of probability that is sampled from; below 1 the samples are not the policy's own.
        seed: the same seed gives the same responses for the same prompts in the same order.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"Sampling: max_new_tokens is {self.max_new_tokens}; expected 1 or more")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"Sampling: temperature is {self.temperature}; expected a finite number, 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p is {self.top_p}; expected 0 < top_p <= 1")


@dataclass(frozen=True)
class Response:
    """Ids of one sampled response, end token left out, and whether it ended by itself."""

    ids: list[int]
    ended: bool


@torch.no_grad()
def sample_responses(
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Iterable[int],
    pad: int,
    sampling: Sampling,
) -> list[Response]:
    """One response for each prompt, in one batch, leaving the global random state as it was.

    Args:
        model: a model with ``generate``, in evaluation mode.
        prompts: token ids of each prompt.
        ends: ids that end a response.
        pad: id to pad with.
        sampling: how to draw.
    """
    stops = sorted(set(ends))
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        rows = generate_ids(model, prompts, pad, _generation_config(sampling, stops, pad))
    return [_cut(row, set(stops)) for row in rows]


@torch.no_grad()
def generate_ids(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad: int,
    config: GenerationConfig,
    processors: Sequence[LogitsProcessor] = (),
) -> list[list[int]]:
    """Ids behind each prompt, end tokens and padding included.

    Args:
        model: a model with ``generate``, in evaluation mode.
        prompts: token ids of each prompt.
        pad: id to pad with.
        config: the settings; the model's own are not looked at.
        processors: what changes the logits before a token is chosen.
    """
    device = next(model.parameters()).device
    ids, attention = _left_padded(prompts, pad)
    with together(model), _bare(model):
        output: Tensor = model.generate(
            input_ids=ids.to(device),
            attention_mask=attention.to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            synced_gpus=False,
        )
    rows: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return rows


@contextmanager
def _bare(model: Any) -> Iterator[None]:
    """The model without settings of its own for generation, which would fill in whatever ours leave open."""
    owners = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    kept = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, kept, strict=True):
            owner.generation_config = config


def _left_padded(prompts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, attention


def _generation_config(sampling: Sampling, stops: list[int], pad: int) -> GenerationConfig:
    greedy = sampling.temperature == 0
    build: Any = GenerationConfig
    config: GenerationConfig = build(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=1.0 if greedy else sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        repetition_penalty=1.0,
        eos_token_id=stops,
        pad_token_id=pad,
    )
    return config


def _cut(row: list[int], stops: set[int]) -> Response:
    """The ids before the first end token.

    >>> _cut([5, 6, 2, 0], {2})
    Response(ids=[5, 6], ended=True)
    """
    for place, token in enumerate(row):
        if token in stops:
            return Response(row[:place], ended=True)
    return Response(row, ended=False)
