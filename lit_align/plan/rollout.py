"""The rollout of an on-policy run, rehearsed: responses are written with a cache, then scored by every model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from lit_align.models.generation import RowSampling
from lit_align.models.lm_head.patch import base_of
from lit_align.modules import LitOnline
from lit_align.plan.rehearsal import Settings, rehearse_reading
from lit_align.types import PairBatch


@dataclass(frozen=True)
class Written:
    """What writing responses takes.

    Args:
        cache: bytes of keys and values when responses are longest.
        working: bytes that are alive beside them, at most.
        operations: floating-point operations of all responses of a rollout.
    """

    cache: int
    working: int
    operations: int


def longest(batch: PairBatch, rows: int) -> PairBatch:
    """The longest responses of a rollout, prompts included.

    Args:
        batch: the rollout.
        rows: how many of them.
    """
    lengths = batch.attention_mask.flatten(1).sum(-1)
    return batch.rows(lengths.argsort(descending=True, stable=True)[:rows])


def rehearse_writing(
    mode: FakeTensorMode, models: list[nn.Module], module: LitOnline, batch: PairBatch, settings: Settings
) -> Written:
    """Write the responses of a rollout as long as they may get: a pass over the prompts, then token by token.

    The first and the last token behind the prompts are rehearsed; operations in between grow evenly. A generator that
    does not say how many responses it writes at once (``batch_size``) is taken to write all of them.

    Args:
        mode: that the weights belong to.
        models: all that are there.
        module: the run.
        batch: a rollout, side axis of 1.
        settings: of the run.
    """
    rows = min(len(batch.index), getattr(module.generator, "batch_size", len(batch.index)))
    group, new = longest(batch, rows), module.settings.sampling.max_new_tokens
    prompt = int((group.attention_mask & ~group.mask).sum(-1).max())
    writer = Writer(module, rows)
    read = partial(rehearse_reading, mode, models, settings=settings)
    most, operations = read(partial(writer.begin, prompt))
    if new > 1:
        peak, first = read(writer.go_on, there=writer.kept)
        read(partial(writer.begin, prompt + new - 2))
        last_peak, last = read(writer.go_on, there=writer.kept)
        most = max(most, peak, last_peak)
        operations += (new - 1) * (first + last) // 2
    cache = sum(part.nbytes for part in writer.kept())
    times = len(batch.index) * (1 + module.objective.needs.greedy / module.settings.responses) / rows
    return Written(cache, max(0, most - cache), int(operations * times))


class Writer:
    """Writes tokens behind prompts as ``generate`` does.

    Args:
        module: the run.
        rows: responses at once.
    """

    def __init__(self, module: LitOnline, rows: int) -> None:
        self.model: Any = module.policy
        self.rows = rows
        self.sampling = module.settings.sampling
        self.numbers = torch.zeros(rows, self.sampling.max_new_tokens, dtype=torch.float64)
        self.width = 0
        self.cache: Any = None

    def kept(self) -> list[Tensor]:
        """Keys and values of all tokens so far."""
        parts = (part for layer in self.cache.layers for part in (layer.keys, layer.values))
        return [part for part in parts if part is not None]

    def begin(self, width: int) -> Tensor:
        """Read prompts of a width, and choose the first token behind each."""
        self.width = width
        self.cache = DynamicCache(config=base_of(self.model).config.get_text_config(decoder=True))
        return self._token(width)

    def go_on(self) -> Tensor:
        """Choose one more token."""
        self.width += 1
        return self._token(1)

    def _token(self, width: int) -> Tensor:
        ids = torch.zeros(self.rows, width, dtype=torch.int64)
        accepted = inspect.signature(base_of(self.model).forward).parameters
        more = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        attention = torch.ones(self.rows, self.width, dtype=torch.int64)
        found = self.model(input_ids=ids, attention_mask=attention, past_key_values=self.cache, use_cache=True, **more)
        logits: Tensor = found.logits[:, -1].to(copy=True, dtype=torch.float32)
        token: Tensor = RowSampling(self.numbers, self.sampling)(ids, logits).argmax(-1)
        return token


def rehearse_scoring(
    mode: FakeTensorMode, models: list[nn.Module], module: LitOnline, batch: PairBatch, settings: Settings
) -> tuple[int, int]:
    """Bytes that are alive at most while a rollout is scored and read by every model, and the operations.

    Args:
        mode: that the weights belong to.
        models: all that are there.
        module: the run.
        batch: a rollout, side axis of 1.
        settings: of the run.
    """
    peaks, operations = [0], 0
    for read, rows in _readings(module):
        part = longest(batch, rows)
        peak, one = rehearse_reading(mode, models, partial(read, part), settings)
        peaks.append(peak)
        operations += one * math.ceil(len(batch.index) / rows)
    return max(peaks), operations


def _readings(module: LitOnline) -> Iterator[tuple[Any, int]]:
    """What is read of a rollout, and how many responses at once."""
    at_once = module.settings.micro_batch
    yield partial(module.readers.read, module.policy), at_once
    if module.reference is not None:
        yield module.reference.log_probs, at_once
    if module.value_model is not None:
        yield partial(module.readers.values, module.value_model), at_once
    scorer = module.score.model
    if scorer is not None:
        yield partial(module.readers.scores, scorer), getattr(module.score, "batch_size", at_once)
