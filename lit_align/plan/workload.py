"""The batch that a plan is made for, of the data or of equal lengths, and the number of optimizer steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lit_align.data import DataError, PairDataset, PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.data.text.render import QUALITY_PROMPT
from lit_align.modules import Module
from lit_align.objectives.base import NO_NEEDS
from lit_align.plan.memory import Parallelism
from lit_align.types import PairBatch


def plan_batch(
    module: Module, data: PreferenceData, lengths: tuple[int, int] | None, max_length: int
) -> tuple[PairBatch, str]:
    """Return the largest micro-batch, or a rollout with the longest responses, and where its lengths come from.

    Args:
        module: what is trained.
        data: read unless lengths are given; where it cannot be, a line is printed and lengths are assumed.
        lengths: tokens of each prompt and each response.
        max_length: tokens of the longest pair, which assumed lengths add up to.
    """
    online = module.settings if module.task == "online" else None
    if lengths is None:
        try:
            data.splits["train"] = data.prepare_split("train")
            batch = largest_batch(data)
        except (OSError, ValueError, DataError) as error:
            reason = str(error).splitlines()[0][:160]
            print(f"the data is not read ({reason}); lengths are assumed, --lengths PROMPT,RESPONSE sets them")
        else:
            if online is None:
                return batch, "the largest of the data"
            rollout = rollout_batch(batch, online.responses, online.sampling.max_new_tokens)
            return rollout, "prompts of the data and the longest responses"
    prompt, response = lengths or (max_length // 2, max_length - max_length // 2)
    if online is not None:
        prompt, response = lengths[0] if lengths else max_length, online.sampling.max_new_tokens
    rows = data.budget.pairs or max(1, (data.budget.tokens or 0) // (2 * (prompt + response)))
    source = f"prompts of {prompt} and responses of {response}"
    if online is not None:
        return rollout_batch(uniform_batch(rows, prompt, 1), online.responses, response), source
    needs = module.objective.needs if module.task == "preference" else NO_NEEDS
    quality = len(QUALITY_PROMPT.split()) * 4 // 3 if needs.prompted else 0
    return uniform_batch(rows, prompt, response, quality, needs.mismatched), source


def largest_batch(data: PreferenceData) -> PairBatch:
    """Return the batch of the first epoch that has the most tokens, padding included."""
    split = data.splits["train"]
    largest = max(_widths_of_batches(data), key=lambda batch: len(batch) * max(batch.values()))
    return Collate(data.pad_token)(PairDataset(split.store, split.values)[list(largest)])


def mean_share(data: PreferenceData) -> float:
    """Return the tokens of an average batch of the first epoch as a share of those of ``largest_batch``.

    Args:
        data: with prepared training pairs, or without: then all batches are alike.
    """
    if "train" not in data.splits:
        return 1.0
    batches = _widths_of_batches(data)
    largest = max(batches, key=lambda batch: len(batch) * max(batch.values()))
    return sum(sum(batch.values()) for batch in batches) / len(batches) / sum(largest.values())


def _widths_of_batches(data: PreferenceData) -> list[dict[Any, int]]:
    """Return, for each batch of the first epoch, its pairs and the tokens of their longer sides."""
    widths = data.splits["train"].store.widths.tolist()
    batches = data.budget.training(widths, data.share, data.seed or 0)
    return [{pair: int(widths[pair[0]]) for pair in batch} for batch in batches]


def uniform_batch(
    pairs: int, prompt: int, response: int, quality_prompt: int = 0, mismatched: bool = False, prefix: int = 0
) -> PairBatch:
    """Return pairs of equal lengths.

    Args:
        pairs: in the micro-batch.
        prompt: tokens of each prompt.
        response: tokens of each response.
        quality_prompt: further tokens of each prompt in a ``prompted`` batch; 0 for no such batch.
        mismatched: whether there is a batch with the responses of other rows.
        prefix: tokens that all prompts begin with.

    >>> uniform_batch(2, prompt=3, response=4).input_ids.shape
    torch.Size([2, 2, 7])
    """
    shape = (pairs, 2, prompt + response)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., prompt:] = True
    ids = torch.zeros(shape, dtype=torch.int64)
    ids[:, :, prefix] = torch.arange(pairs).unsqueeze(-1)  # no prompt twice
    ids[:, 1, prompt:] = pairs  # and no response
    prompted = (
        uniform_batch(pairs, prompt + quality_prompt, response, prefix=quality_prompt) if quality_prompt else None
    )
    batch = _batch(ids, torch.ones(shape, dtype=torch.bool), mask)
    return replace(batch, mismatched=uniform_batch(pairs, prompt, response) if mismatched else None, prompted=prompted)


def _batch(ids: Tensor, attention_mask: Tensor, mask: Tensor, truncated: bool = False) -> PairBatch:
    rows, sides, _ = ids.shape
    return PairBatch(
        input_ids=ids,
        attention_mask=attention_mask,
        mask=mask,
        truncated=torch.full((rows, sides), truncated),
        weight=torch.ones(rows),
        index=torch.arange(rows),
    )


def rollout_batch(batch: PairBatch, responses: int, tokens: int) -> PairBatch:
    """Return a rollout in which all responses have full length and no two begin alike.

    >>> rollout_batch(uniform_batch(2, prompt=3, response=4), responses=2, tokens=5).mask.sum((1, 2)).tolist()
    [5, 5, 5, 5]
    """
    prompts = (batch.attention_mask & ~batch.mask)[:, 0].sum(-1).repeat_interleave(responses)[:, None, None]
    position = torch.arange(int(prompts.max()) + tokens)
    ids = torch.zeros(len(prompts), 1, len(position), dtype=torch.int64)
    rows = torch.arange(len(prompts))
    ids[:, 0, 0] = rows // responses  # one prompt for each group of responses
    ids[rows, 0, prompts.flatten()] = 1 + rows % responses
    read = position < prompts + tokens
    return _batch(ids, read, read & (position >= prompts), truncated=True)


def count_steps(module: Module, data: PreferenceData, trainer: Any, parallelism: Parallelism) -> int | None:
    """Return the optimizer steps of the run; None where they cannot be known."""
    limit = trainer.max_steps if (trainer.max_steps or 0) > 0 else None
    if "train" not in data.splits or (trainer.max_epochs or 0) <= 0:
        return limit
    share = replace(data.share, world=parallelism.processes, accumulate=parallelism.accumulate)
    batches = len(data.budget.training(data.splits["train"].store.widths.tolist(), share, data.seed or 0))
    per_batch = module.settings.steps if module.task == "online" else 1
    steps: int = -(-batches // parallelism.accumulate) * trainer.max_epochs * per_batch
    return min(steps, limit) if limit else steps
