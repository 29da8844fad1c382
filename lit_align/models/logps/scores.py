"""What a score model says of responses, and of their tokens, read without padding or repeated prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias, final

import torch
from torch import nn
from torch.nn import functional as F

from lit_align.models.logps.packing import scored
from lit_align.models.logps.reader import Reader
from lit_align.types import PairBatch, PairScores, PairTokens

ReadScores: TypeAlias = Callable[[nn.Module, PairBatch], PairScores]
"""From a score model and a batch to the scores of its responses."""


@final
class TokenScores(Reader):
    """Gives the numbers of a ``ScoreModel``: at the end of each response, or before each of its tokens.

    Args:
        model: a ``ScoreModel``.
        how: see the base class.
    """

    @property
    def lacks(self) -> None:
        """Nothing: every score model has its head."""

    def probed(self, batch: PairBatch) -> PairTokens:
        """The numbers before the scored tokens."""
        return self(batch)

    def __call__(self, batch: PairBatch) -> PairTokens:
        """The head's number at the token before each scored one, packed to the left: what a value model expects there.

        Args:
            batch: the pairs, wherever they are padded; one side or both.
        """
        batch = _from_the_left(batch)
        reading, mask = self._read(batch), scored(batch).flatten(0, 1)
        row, token = mask.nonzero(as_tuple=True)
        found = self.model(**reading.inputs).flatten()[reading.places]
        out = found.new_zeros(len(mask), int(batch.lengths.max()))
        placed: PairTokens = out.index_put((row, mask.cumsum(-1)[row, token] - 1), found)
        return placed.view(*batch.input_ids.shape[:2], -1)

    def scores(self, batch: PairBatch) -> PairScores:
        """The score of each response: the head's number at its last scored token; 0 for a side that is absent.

        Args:
            batch: the pairs, wherever they are padded; one side or both.
        """
        found: PairScores = self(_behind(_from_the_left(batch)))[..., 0]
        return found


def _from_the_left(batch: PairBatch) -> PairBatch:
    """The batch with its padding on the right.

    >>> ids, one = torch.tensor([[[0, 0, 5, 6]]]), torch.ones(1)
    >>> _from_the_left(PairBatch(ids, ids > 0, ids > 5, ids[..., 0] > 0, one, one.long())).input_ids.tolist()
    [[[5, 6, 0, 0]]]
    """
    there = batch.attention_mask
    if not bool((~there[..., 0] & there.any(-1)).any()):
        return batch
    place = torch.arange(there.shape[-1], device=there.device)
    order = (place + there.int().argmax(-1, keepdim=True)) % len(place)
    ids, attention, mask = (part.gather(-1, order) for part in (batch.input_ids, there, batch.mask))
    return replace(batch, input_ids=ids, attention_mask=attention, mask=mask)


def _behind(batch: PairBatch) -> PairBatch:
    """The batch with one token more, behind the last scored one of each response, and that one alone scored.

    >>> ids, one = torch.tensor([[[5, 6, 7, 8]]]), torch.ones(1)
    >>> mask = torch.tensor([[[False, True, True, False]]])
    >>> _behind(PairBatch(ids, ids > 0, mask, mask[..., 0], one, one.long())).mask.tolist()
    [[[False, False, False, True, False]]]
    """
    ids, attention, mask = (F.pad(part, (0, 1)) for part in (batch.input_ids, batch.attention_mask, batch.mask))
    place = torch.arange(mask.shape[-1], device=mask.device)
    last = (place * mask).amax(-1, keepdim=True)
    behind = (place == last + 1) & mask.any(-1, keepdim=True)
    return replace(batch, input_ids=ids, attention_mask=attention | behind, mask=behind)
