"""Given pairs are the responses that the data have to the prompts of an evaluation, seen by scores and policy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_align.metrics.rollouts import WeightedPairs
from lit_align.models.scorer import Texts
from lit_align.models.sharding import together
from lit_align.modules.drawing import Draw
from lit_align.online.matching import PairedPreferences
from lit_align.types import PairBatch


@torch.no_grad()
def given_pairs(draw: Draw, policy: nn.Module, batch: PairBatch, split: str) -> WeightedPairs | None:
    """Gaps of score and log-probability between the responses of each row that has two; None if none has.

    Every process comes here with its own batch.

    Args:
        draw: knows the data, and what scores.
        policy: whose log-probabilities are taken.
        batch: rows of a split.
        split: which one.

    Raises:
        ScoreError: a score cannot be used; names the prompt.
    """
    rows = batch.mask.any(-1).all(-1).nonzero()[:, 0]
    pairs = batch.rows(rows)
    with draw.score.ready():
        score = draw.scores(*_singly(draw, pairs, split)).double().view(-1, 2) if len(rows) else None
    with together(policy):
        log_prob = draw.sources.read(policy, pairs).double().sum(-1) if len(rows) else None
    if score is None or log_prob is None:
        return None
    gaps = PairedPreferences(score[:, 0] - score[:, 1], log_prob[:, 0] - log_prob[:, 1])
    return WeightedPairs(gaps, (pairs.weight > 0).float())


def _singly(draw: Draw, batch: PairBatch, split: str) -> tuple[PairBatch, Texts]:
    """Both responses of every pair as rows with a side axis of 1, chosen and rejected in turn."""
    places = batch.index.tolist()
    rows = [draw.data.splits[split].store[place] for place in places]
    asked = [draw.prompt_text(split, place, row.prompt) for place, row in zip(places, rows, strict=True)]
    ends = draw.data.end_tokens
    said = [
        draw.data.decode(side.ids[:-1] if side.ids and side.ids[-1] in ends else side.ids)
        for row in rows
        for side in row.sides
    ]

    def flat(part: Tensor) -> Tensor:
        return part.flatten(0, 1).unsqueeze(1)

    single = PairBatch(
        input_ids=flat(batch.input_ids),
        attention_mask=flat(batch.attention_mask),
        mask=flat(batch.mask),
        truncated=flat(batch.truncated),
        weight=batch.weight.repeat_interleave(2),
        index=batch.index.repeat_interleave(2),
    )
    return single, Texts([text for text in asked for _ in (0, 1)], said)
