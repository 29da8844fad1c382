"""Short sequences of the data that models are tried on: at the start of a run, and when they have been exported."""

from __future__ import annotations

from typing import Any

import torch

from lit_align.data import PreferenceData
from lit_align.models.logps.probe import short_pairs
from lit_align.types import PairBatch

PROBED_ROWS = 64
"""Rows of a split, of which the two shortest are taken."""
_PROMPTS, _RESPONSES = (24, 12), ((8, 8), (6, 8))
"""Most tokens of the prompts and responses: enough for routers and noise to show, and quick on any model."""


def probe_sequences(data: Any) -> list[list[int]]:
    """Return four short sequences of ids to compare models on, of which the first two have the same prompt.

    They are made of rows of the data, or of a text if none are prepared.

    Args:
        data: the data module; only a ``PreferenceData`` gives any.
    """
    if not isinstance(data, PreferenceData):
        return []
    pairs = short_pairs(_rows(data), prompts=_PROMPTS, responses=_RESPONSES)
    rows = zip(pairs.input_ids.flatten(0, 1), pairs.attention_mask.flatten(0, 1), strict=True)
    return [ids[attention].tolist() for ids, attention in rows]


def _rows(data: PreferenceData) -> PairBatch:
    if data.splits:
        split = next(iter(data.splits))
        widths = data.splits[split].store.widths[:PROBED_ROWS]
        shortest = sorted(range(len(widths)), key=widths.__getitem__)[:2]
        batch: PairBatch = next(iter(data.rows_dataloader(split, shortest)))
        return batch
    text = data.tokenizer("An export is read back.", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[[*text, int(data.tokenizer.eos_token_id)]]])
    response, ones = torch.arange(ids.shape[-1]) >= ids.shape[-1] // 2, torch.ones(1)
    return PairBatch(ids, ids == ids, response.expand(ids.shape), ones.expand(1, 1) < 0, ones, ones.long())
