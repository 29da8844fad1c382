"""Scores of responses, and values of their tokens, read without padding or repeated prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, final

import torch
from torch import nn
from torch.nn import functional as F
from typing_extensions import override

from lit_align.models.logps.reader import ModelReader
from lit_align.types import PairBatch, PairScores, PairTokens

ReadScores: TypeAlias = Callable[[nn.Module, PairBatch], PairScores]
"""From a score model and a batch to the scores of its responses."""


@final
class ScoreReader(ModelReader):
    """Reads batches with a ``ScoreModel``: a score per response, or a value before each of its tokens.

    Args:
        model: a ``ScoreModel``.
        how: layout and sizes.
    """

    @property
    @override
    def obstacle(self) -> None:
        return None

    @override
    def probe(self, batch: PairBatch) -> PairTokens:
        return self(batch)

    def __call__(self, batch: PairBatch) -> PairTokens:
        """Compute the head's output at the token before each scored one, left-aligned.

        For a value model, this is the return expected there.

        Args:
            batch: the pairs, padded on either side; one side or both.
        """
        inputs = self._inputs(_left_aligned(batch.on_host), batch.input_ids.device)
        tokens = inputs.tokens
        values = self.model(**inputs.arguments).flatten()[inputs.positions]
        return tokens.unpack(values, tokens.pairs)

    def scores(self, batch: PairBatch) -> PairScores:
        """Compute the score of each response: the head's output at its last scored token; 0 for an absent side."""
        appended = _append_position(_left_aligned(batch.on_host))
        scores: PairScores = self(appended.to(batch.input_ids.device, non_blocking=True))[..., 0]
        return scores


def _left_aligned(batch: PairBatch) -> PairBatch:
    """Move the padding of a batch to the right.

    >>> ids, one = torch.tensor([[[0, 0, 5, 6]]]), torch.ones(1)
    >>> _left_aligned(PairBatch(ids, ids > 0, ids > 5, ids[..., 0] > 0, one, one.long())).input_ids.tolist()
    [[[5, 6, 0, 0]]]
    """
    attention = batch.attention_mask
    if not bool((~attention[..., 0] & attention.any(-1)).any()):
        return batch
    place = torch.arange(attention.shape[-1], device=attention.device)
    order = (place + attention.int().argmax(-1, keepdim=True)) % len(place)
    ids, attention, mask = (part.gather(-1, order) for part in (batch.input_ids, attention, batch.mask))
    return replace(batch, input_ids=ids, attention_mask=attention, mask=mask, packing=None)


def _append_position(batch: PairBatch) -> PairBatch:
    """Append a token after the last scored one of each response, and score that one only.

    >>> ids, one = torch.tensor([[[5, 6, 7, 8]]]), torch.ones(1)
    >>> mask = torch.tensor([[[False, True, True, False]]])
    >>> _append_position(PairBatch(ids, ids > 0, mask, mask[..., 0], one, one.long())).mask.tolist()
    [[[False, False, False, True, False]]]
    """
    ids, attention, mask = (F.pad(part, (0, 1)) for part in (batch.input_ids, batch.attention_mask, batch.mask))
    place = torch.arange(mask.shape[-1], device=mask.device)
    last = (place * mask).amax(-1, keepdim=True)
    appended = (place == last + 1) & mask.any(-1, keepdim=True)
    return replace(batch, input_ids=ids, attention_mask=attention | appended, mask=appended, packing=None)
