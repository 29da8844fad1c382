"""The workload of a plan is the micro-batch that needs most memory."""

from __future__ import annotations

import torch

from lit_align.data import PairDataset, PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.types import PairBatch


def largest_batch(data: PreferenceData) -> PairBatch:
    """The batch of the first epoch that has the most tokens, padding included.

    Args:
        data: whose training pairs have been prepared.
    """
    split = data.splits["train"]
    widths = split.store.widths
    plan = data.budget.training(widths.tolist(), data.share, data.seed or 0)
    largest = max(plan, key=lambda batch: len(batch) * max(int(widths[index]) for index, _ in batch))
    return Collate(data.pad_token)(PairDataset(split.store, split.values)[largest])


def uniform_batch(
    pairs: int, prompt: int, response: int, quality_prompt: int = 0, mismatched: bool = False, opening: int = 0
) -> PairBatch:
    """Pairs of the same lengths, for data that is not there.

    Args:
        pairs: in the micro-batch.
        prompt: tokens of each prompt.
        response: tokens of each response.
        quality_prompt: tokens that the prompted pair has more; 0 for none.
        mismatched: with the responses of other rows.
        opening: tokens that all prompts begin with.

    >>> uniform_batch(2, prompt=3, response=4).input_ids.shape
    torch.Size([2, 2, 7])
    """
    shape = (pairs, 2, prompt + response)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., prompt:] = True
    ids = torch.zeros(shape, dtype=torch.int64)
    ids[:, :, opening] = torch.arange(pairs).unsqueeze(-1)  # not the same prompt twice
    ids[:, 1, prompt:] = pairs  # nor the same response
    return PairBatch(
        input_ids=ids,
        attention_mask=torch.ones(shape, dtype=torch.bool),
        mask=mask,
        truncated=torch.zeros(pairs, 2, dtype=torch.bool),
        weight=torch.ones(pairs),
        index=torch.arange(pairs),
        mismatched=uniform_batch(pairs, prompt, response) if mismatched else None,
        prompted=uniform_batch(pairs, prompt + quality_prompt, response, opening=quality_prompt)
        if quality_prompt
        else None,
    )


def whole_responses(batch: PairBatch, each: int, tokens: int) -> PairBatch:
    """A rollout whose responses are all as long as they may get.

    Args:
        batch: whose prompts are answered.
        each: responses to each prompt.
        tokens: of each response.

    >>> whole_responses(uniform_batch(2, prompt=3, response=4), each=2, tokens=5).mask.sum((1, 2)).tolist()
    [5, 5, 5, 5]
    """
    prompts = (batch.attention_mask & ~batch.mask)[:, 0].sum(-1).repeat_interleave(each)[:, None, None]
    place = torch.arange(int(prompts.max()) + tokens)
    rows = len(prompts)
    ids = torch.zeros(rows, 1, len(place), dtype=torch.int64)
    ids[:, 0, 0] = torch.arange(rows)  # no two are taken to begin alike
    return PairBatch(
        input_ids=ids,
        attention_mask=place < prompts + tokens,
        mask=(place >= prompts) & (place < prompts + tokens),
        truncated=torch.ones(rows, 1, dtype=torch.bool),
        weight=torch.ones(rows),
        index=torch.arange(rows),
    )
