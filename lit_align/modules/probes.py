"""Short rows that models are tried on: at the start of a run, and when they have been exported."""

from __future__ import annotations

from typing import Any

from lit_align.data import PreferenceData

PROBES, PROBE_TOKENS, PROBED_ROWS = 2, 64, 64
"""Rows that a model is tried on, most tokens of each, and rows of a split of which they are the shortest."""


def probe_sequences(data: Any) -> list[list[int]]:
    """Return short sequences of ids to compare models on: rows of the data, or a text if none are prepared.

    Args:
        data: the data module; only a ``PreferenceData`` gives any.
    """
    if not isinstance(data, PreferenceData):
        return []
    if not data.splits:
        ids: list[int] = data.tokenizer("An export is read back.", add_special_tokens=False)["input_ids"]
        end = int(data.tokenizer.eos_token_id)
        return [[*ids, end], [*ids[: len(ids) // 2], end]]
    split = next(iter(data.splits))
    widths = data.splits[split].store.widths[:PROBED_ROWS]
    rows = sorted(range(len(widths)), key=widths.__getitem__)[:PROBES]
    sequences = [
        ids[attention].tolist()[-PROBE_TOKENS:]
        for batch in data.rows_dataloader(split, rows)
        for ids, attention in zip(batch.input_ids[:, 0], batch.attention_mask[:, 0], strict=True)
    ]
    return [sequence for sequence in sequences if len(sequence) > 1]
