"""Responses sampled from a causal language model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

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


@dataclass(frozen=True)
class Written:
    """Ids of one response, the end token included where it ended by itself."""

    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Request:
    """One response that is wanted.

    Args:
        prompt: token ids of the prompt.
        draw: the same number gives the same response of the same policy, whatever else is asked for with it.
    """

    prompt: Sequence[int]
    draw: int


class Generator(ABC):
    """The seam for a faster engine: a leaf gets the policy as it is now, and requests.

    A response must depend on its own request, the policy and the settings alone, so that a run does not depend on how
    its batches are split up.
    """

    @abstractmethod
    def __call__(
        self, model: Any, requests: Sequence[Request], ends: Collection[int], pad: int, sampling: Sampling
    ) -> list[Written]:
        """One response for each request, in their order.

        Args:
            model: the policy, in evaluation mode.
            requests: what is wanted.
            ends: ids that end a response.
            pad: id to pad with.
            sampling: length, temperature and top-p; its seed is in the draws already.
        """


@final
@dataclass(frozen=True)
class CachedGenerator(Generator):
    """The model's own ``generate`` with its key-value cache, prompts of about the same length together.

    Args:
        batch_size: responses that are written at once.
    """

    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"CachedGenerator: batch_size is {self.batch_size}; expected 1 or more")

    def __call__(
        self, model: Any, requests: Sequence[Request], ends: Collection[int], pad: int, sampling: Sampling
    ) -> list[Written]:
        """See the base class."""
        order = sorted(range(len(requests)), key=lambda place: len(requests[place].prompt))
        found: dict[int, Written] = {}
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            found |= zip(
                places, _write(model, [requests[place] for place in places], ends, pad, sampling), strict=True
            )
        return [found[place] for place in range(len(requests))]


class RowSampling(LogitsProcessor):
    """Chooses the token of each row from the row's own random numbers, and leaves no other possible.

    Args:
        numbers: a number in [0, 1) for each row and step.
        sampling: temperature (above 0) and top-p.
    """

    def __init__(self, numbers: Tensor, sampling: Sampling) -> None:
        self.numbers = numbers
        self.sampling = sampling
        self._step = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Logits in which one token of each row is finite."""
        chances = (scores.double() / self.sampling.temperature).softmax(-1)
        cumulative = nucleus(chances, self.sampling.top_p).cumsum(-1)
        numbers = self.numbers[:, self._step, None].to(cumulative.device)
        token = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, token.clamp_max(scores.shape[-1] - 1), 0.0)


def nucleus(chances: Tensor, top_p: float) -> Tensor:
    """The probabilities of the likeliest tokens that reach ``top_p`` together, 0 for the others; not renormalised.

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.7)
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    if top_p == 1:
        return chances
    ordered, places = chances.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(chances).scatter(-1, places, torch.where(before < top_p, ordered, 0.0))


def numbers_of(draws: Sequence[int], steps: int) -> Tensor:
    """A number in [0, 1) for each draw and step, which depends on nothing else."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(draw), dtype=torch.float64) for draw in draws]
    return torch.stack(rows)


def draw_of(*parts: int) -> int:
    """A number below 2^62 that is made of several; other parts give another one.

    >>> draw_of(1, 2) != draw_of(2, 1), draw_of(0) < 2**62
    (True, True)
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed >> 2


def _write(
    model: Any, requests: Sequence[Request], ends: Collection[int], pad: int, sampling: Sampling
) -> list[Written]:
    build: Any = GenerationConfig
    config = build(
        max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=sorted(ends), pad_token_id=pad
    )
    numbers = numbers_of([request.draw for request in requests], sampling.max_new_tokens)
    processors = [RowSampling(numbers, sampling)] if sampling.temperature > 0 else []
    rows = generate_ids(model, [request.prompt for request in requests], pad, config, processors)
    return [_to_end(row, ends) for row in rows]


def _to_end(row: list[int], ends: Collection[int]) -> Written:
    """The ids up to the first end token.

    >>> _to_end([5, 6, 2, 0], {2})
    Written(ids=[5, 6, 2], ended=True)
    """
    end = next((place for place, token in enumerate(row) if token in ends), None)
    return Written(row, False) if end is None else Written(row[: end + 1], True)
