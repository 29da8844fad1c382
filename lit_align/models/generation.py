"""Sampling of responses from a causal language model."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import groupby
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from typing_extensions import override

from lit_align.compat.peft import PeftModel
from lit_align.errors import check_range
from lit_align.models.lm_head.patch import base_of
from lit_align.models.sampling import RowSampling, Sampling, uniform_numbers
from lit_align.models.sharding import unsharded

PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers of a cache that hold keys and values of tokens, and nothing else."""


@dataclass(frozen=True)
class GeneratedResponse:
    """Ids of one response, its stop token included if it ended by itself.

    >>> GeneratedResponse([5, 6, 2], ended=True).content
    [5, 6]
    """

    ids: list[int]
    ended: bool

    @property
    def content(self) -> list[int]:
        """The ids without the stop token."""
        return self.ids[:-1] if self.ended else self.ids


@dataclass(frozen=True)
class GenerationRequest:
    """One response to generate.

    Args:
        prompt: token ids of the prompt.
        seed: the same seed gives the same response of the same policy, whatever else is requested with it.
    """

    prompt: Sequence[int]
    seed: int


class Generator(ABC):
    """The interface to an engine that generates responses: it gets the current policy and a list of requests.

    A response must depend on its own request, the policy and the settings alone, so that a run does not depend on how
    its batches are split up.
    """

    @abstractmethod
    def __call__(
        self,
        model: Any,
        requests: Sequence[GenerationRequest],
        stop_tokens: Collection[int],
        pad_token: int,
        sampling: Sampling,
    ) -> list[GeneratedResponse]:
        """Generate one response for each request, in their order.

        Args:
            model: the policy, in evaluation mode.
            requests: the prompts, each with a seed.
            stop_tokens: ids that end a response.
            pad_token: id to pad with.
            sampling: length, temperature and top-p; its seed is part of the requests' seeds already.
        """


@dataclass(frozen=True)
class CachedGenerator(Generator):
    """Generates with the model's own ``generate`` and its key-value cache, in batches of prompts of similar length.

    A prompt is read once for all its responses in a batch, by models whose cache has nothing but keys and values.

    Args:
        batch_size: responses that are generated at once.
        static_cache: keep keys and values in memory of a fixed size, so that transformers compiles the pass over one
            token on a CUDA device: the first responses take a minute or more, the later ones less. Batches are then
            filled up to ``batch_size``, and a prompt is read for each response. No GPU has shown yet where it pays.
    """

    batch_size: int = 64
    static_cache: bool = False

    def __post_init__(self) -> None:
        check_range("CachedGenerator: batch_size", self.batch_size, 1)

    @override
    def __call__(
        self,
        model: Any,
        requests: Sequence[GenerationRequest],
        stop_tokens: Collection[int],
        pad_token: int,
        sampling: Sampling,
    ) -> list[GeneratedResponse]:
        config = _config(sampling, pad_token, eos_token_id=sorted(set(stop_tokens)))
        static_cache = self.static_cache and _takes_cache(model)
        responses: dict[int, GeneratedResponse] = {}
        with unsharded(model):
            for places in prompt_batches(model, [r.prompt for r in requests], self.batch_size, pad_token, sampling):
                missing = self.batch_size - len(places) if static_cache else 0
                rows = [requests[place] for place in (*places, *places[-1:] * missing)]
                processors = self.processors(rows, sampling)
                generated = _generate(model, [r.prompt for r in rows], config, processors, static_cache)
                responses |= zip(places, generated[: len(places)], strict=True)
        return [responses[place] for place in range(len(requests))]

    def processors(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[LogitsProcessor]:
        """Return what chooses the tokens of a batch by the logits."""
        numbers = uniform_numbers([request.seed for request in requests], sampling.max_new_tokens)
        return [RowSampling(numbers, sampling)] if sampling.temperature > 0 else []


@torch.no_grad()
def sample_responses(
    model: Any, prompts: Sequence[Sequence[int]], stop_tokens: Iterable[int], pad_token: int, sampling: Sampling
) -> list[GeneratedResponse]:
    """Sample one response for each prompt, and leave the global random state as it was.

    All prompts make one batch, unless padding changes what the model gives; see `prompt_batches`.
    """
    greedy, device = sampling.temperature == 0, next(model.parameters()).device
    temperature = 1.0 if greedy else sampling.temperature
    options = {"do_sample": not greedy, "temperature": temperature, "top_p": sampling.top_p, "top_k": 0}
    config = _config(sampling, pad_token, eos_token_id=sorted(set(stop_tokens)), repetition_penalty=1.0, **options)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        responses: dict[int, GeneratedResponse] = {}
        with unsharded(model):
            batches = prompt_batches(model, prompts, len(prompts), pad_token, sampling)
            for places in [list(range(len(prompts)))] if len(batches) == 1 else batches:
                responses |= zip(places, _generate(model, [prompts[p] for p in places], config), strict=True)
        return [responses[place] for place in range(len(prompts))]


def model_stop_tokens(model: Any) -> set[int]:
    """The end tokens of a model's own generation settings."""
    own: int | list[int] | None = model.generation_config.eos_token_id
    return set() if own is None else {own} if isinstance(own, int) else set(own)


def _config(sampling: Sampling, pad_token: int, **options: Any) -> GenerationConfig:
    settings = {"max_new_tokens": sampling.max_new_tokens, "pad_token_id": pad_token, "do_sample": False, **options}
    return GenerationConfig(**settings)


PROBED_STEPS = 3
"""Tokens after a prompt that are compared: the later ones come out of the cache."""
PROBED_TOKENS = 12
"""Tokens of the shorter prompt that are compared; of the longer one twice as many."""
Together: TypeAlias = Literal["any lengths", "equal lengths", "one by one"]
"""Which prompts a model generates for at once without one changing the response to another."""
_TOGETHER: WeakKeyDictionary[nn.Module, Together] = WeakKeyDictionary()


def prompt_batches(
    model: Any, prompts: Sequence[Sequence[int]], size: int, pad_token: int, sampling: Sampling
) -> list[list[int]]:
    """Return the places of prompts that are generated for at once, each prompt once, by length.

    Recurrent models and those with linear attention may read padding. The first time that prompts differ in length,
    what the model gives for the shortest one is compared, alone and beside the longest; where it differs, batches have
    one length, or one prompt. Not a collective: enter ``unsharded`` before.
    """
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    steps = min(PROBED_STEPS, sampling.max_new_tokens)
    config = _config(sampling, pad_token, max_new_tokens=steps, output_logits=True, return_dict_in_generate=True)
    together = _together(model, prompts[order[0]], prompts[order[-1]], config)
    size = 1 if together == "one by one" else size
    groups = [list(group) for _, group in groupby(order, key=lambda place: len(prompts[place]))]
    parts = groups if together == "equal lengths" else [order]
    return [part[start : start + size] for part in parts for start in range(0, len(part), size)]


def _together(model: Any, short: Sequence[int], long: Sequence[int], config: GenerationConfig) -> Together:
    """Compare the logits of the next tokens of a prompt alone, beside a longer one, and beside one of its length."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if base in _TOGETHER or len(short) == len(long):
        return _TOGETHER.get(base, "any lengths")
    short, long = short[-PROBED_TOKENS:], long[-2 * PROBED_TOKENS :]  # padding shows on any lengths that differ
    alone = _next_logits(model, [short], config)
    allowed = (0.1 if next(model.parameters()).dtype == torch.bfloat16 else 1e-3) * float(alone.abs().max())
    together: Together = "one by one"
    ways: tuple[tuple[Together, Sequence[int]], ...] = (("any lengths", long), ("equal lengths", long[-len(short) :]))
    for way, other in ways:
        difference = float((_next_logits(model, [short, other], config)[0] - alone[0]).abs().max())
        if difference <= allowed or not math.isfinite(allowed):
            together = way
            break
    _TOGETHER[base] = together
    if together != "any lengths":
        how = "for prompts of equal lengths" if together == "equal lengths" else together
        warnings.warn(
            f"{base.config.model_type}: what the model gives for a prompt depends on the prompts beside it, so "
            f"responses are generated {how}; this takes longer",
            stacklevel=2,
        )
    return together


@torch.no_grad()
def _next_logits(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> Tensor:
    """Return the logits of the next tokens, ``[prompt, step, id]``: of the prompt, and of what the cache keeps."""
    return torch.stack(_call_generate(model, prompts, config, ()).logits, dim=1).float()


@torch.no_grad()
def _generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: Any,
    processors: Sequence[LogitsProcessor] = (),
    static_cache: bool = False,
) -> list[GeneratedResponse]:
    """Generate in one batch with the given settings alone; a sharded model is gathered first."""
    output: Tensor = _call_generate(model, prompts, config, processors, static_cache)
    return [_until_stop(row, config.eos_token_id) for row in output[:, max(map(len, prompts)) :].tolist()]


def _call_generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    config: Any,
    processors: Sequence[LogitsProcessor],
    static_cache: bool = False,
) -> Any:
    inputs = _left_padded(prompts, config.pad_token_id, next(model.parameters()).device)
    with unsharded(model), _without_generation_config(model):
        return model.generate(
            **inputs,
            past_key_values=_static_cache(model, inputs["input_ids"].shape[1] + config.max_new_tokens)
            if static_cache  # then each response reads its prompt
            else _prompt_cache(model, prompts, config.pad_token_id),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            synced_gpus=False,
        )


def _left_padded(prompts: Sequence[Sequence[int]], pad_token: int, device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_token] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids.to(device), "attention_mask": attention.to(device)}


class OneDtypeCache(StaticCache):
    """Keys and values of a fixed size, under autocast in its dtype.

    Layers then give keys in float32 and values in 16 bits, which memory of one dtype does not hold. Attention casts
    both anyway, so the cast alone changes nothing; 16 bits still round differently at another shape.
    """

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        kind = key_states.device.type
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        return super().update(key_states, value_states, *args, **kwargs)


_LONGEST: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Tokens of a model's last fixed cache: a shorter one would have to be compiled for anew."""


def _takes_cache(model: Any) -> bool:
    """Return whether a model can keep its keys and values in a cache that it is given, and warn if it cannot."""
    base = base_of(model)
    takes = "past_key_values" in signature(base.forward).parameters
    if not takes:
        warnings.warn(
            f"{base.config.model_type}: it takes no cache of keys and values, so static_cache has no effect",
            stacklevel=3,
        )
    return takes


def _static_cache(model: Any, length: int) -> OneDtypeCache:
    base = base_of(model)
    _LONGEST[base] = max(length, _LONGEST.get(base, 0))
    return OneDtypeCache(base.config.get_text_config(decoder=True), max_cache_len=_LONGEST[base])


_HAS_PLAIN_CACHE: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models whose cache was looked at, and whether it has nothing but keys and values of tokens."""


def _prompt_cache(model: Any, prompts: Sequence[Sequence[int]], pad_token: int) -> DynamicCache | None:
    """Read each distinct prompt once, all but its last token, and return the cache with a row for every prompt.

    Returns:
        None where all prompts differ, and for models that keep anything else, such as a recurrent state.
    """
    row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    base = base_of(model)
    if len(row_of) == len(prompts) or max(map(len, row_of)) == 1 or not _HAS_PLAIN_CACHE.get(base, True):
        return None
    inputs = _left_padded(list(row_of), pad_token, next(model.parameters()).device)
    inputs = {name: part[:, :-1] for name, part in inputs.items()}
    config = _config(Sampling(max_new_tokens=1), pad_token, return_dict_in_generate=True)
    cache: DynamicCache = model.generate(**inputs, generation_config=config, synced_gpus=False).past_key_values
    _HAS_PLAIN_CACHE[base] = type(cache) is DynamicCache and all(type(layer) in PLAIN_LAYERS for layer in cache.layers)
    if not _HAS_PLAIN_CACHE[base]:
        return None
    cache.batch_select_indices(
        torch.tensor([row_of[tuple(prompt)] for prompt in prompts], device=inputs["input_ids"].device)
    )
    return cache


@contextmanager
def _without_generation_config(model: Any) -> Iterator[None]:
    """Hide the model's own generation settings, which would fill in whatever the given ones leave open."""
    owners = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    configs = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config


def _until_stop(row: list[int], stop_tokens: Collection[int]) -> GeneratedResponse:
    """Cut a row behind its first stop token.

    >>> _until_stop([5, 6, 2, 0], {2})
    GeneratedResponse(ids=[5, 6, 2], ended=True)
    """
    end = next((place for place, token in enumerate(row) if token in stop_tokens), None)
    return GeneratedResponse(row, False) if end is None else GeneratedResponse(row[: end + 1], True)
