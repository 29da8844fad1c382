"""Pairs of given lengths and log-ratios, for numbers that can be derived by hand."""

from __future__ import annotations

import torch

from lit_align.types import Outcome, PairBatch, PairLogProbs


def logps_of(policy: list[list[list[float]]], reference: float | None = 0.0) -> PairLogProbs:
    """Build log-probs of pairs; an empty side is absent, and the reference has the same value everywhere."""
    width = max(len(side) for sides in policy for side in sides)
    mask = torch.tensor([[[place < len(side) for place in range(width)] for side in sides] for sides in policy])
    padded = torch.tensor([[side + [0.0] * (width - len(side)) for side in sides] for sides in policy])
    return PairLogProbs(padded, None if reference is None else reference * mask.float(), mask)


def batch_of(logps: PairLogProbs, weight: list[float] | None = None) -> PairBatch:
    """Build a batch that fits the log-probs."""
    count = len(logps.mask)
    return PairBatch(
        input_ids=logps.mask.long(),
        attention_mask=logps.mask,
        mask=logps.mask,
        truncated=torch.zeros(logps.mask.shape[:2], dtype=torch.bool),
        weight=torch.tensor(weight or [1.0] * count),
        index=torch.arange(count),
    )


def outcome_of(rewards: list[list[float]]) -> Outcome:
    """An outcome with these rewards, whose losses are 0, 1, 2, …."""
    return Outcome(torch.arange(len(rewards)).float(), torch.tensor(rewards))
