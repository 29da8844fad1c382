"""Collating pads a list of tokenized pairs into the tensors of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lit_align.types import PairBatch, TokenizedPair

WeightedPair: TypeAlias = tuple[TokenizedPair, float]


@dataclass(frozen=True)
class Collate:
    """Pads on the right to the longest sequence of the batch; both sides have the same width.

    Args:
        pad: id of padding; no result depends on it.

    >>> from lit_align.types import TokenizedResponse
    >>> pair = TokenizedPair([1, 2], TokenizedResponse([3], [True]), TokenizedResponse([4, 5], [True, True]))
    >>> batch = Collate(pad=0)([(pair, 1.0)])
    >>> batch.input_ids.tolist(), batch.mask.int().tolist()
    ([[[1, 2, 3, 0], [1, 2, 4, 5]]], [[[0, 0, 1, 0], [0, 0, 1, 1]]])
    """

    pad: int

    def __call__(self, items: Sequence[WeightedPair]) -> PairBatch:
        """The batch; ``prompted`` is there if the pairs carry p ⊕ x, ``mismatched`` if they carry others' responses.

        Args:
            items: pairs with the weights of their places in the batch.
        """
        pairs = [pair for pair, _ in items]
        weight = torch.tensor([weight * pair.weight for pair, weight in items])
        batch = self._batch(pairs, [pair.prompt for pair in pairs], weight)
        batch = replace(batch, **_numbers(pairs))
        prompted = [pair.prompted for pair in pairs if pair.prompted is not None]
        others = [_with_others(pair) for pair in pairs if pair.mismatched is not None]
        return replace(
            batch,
            prompted=self._batch(pairs, prompted, weight) if prompted else None,
            mismatched=self._batch(others, [pair.prompt for pair in others], weight) if others else None,
        )

    def _batch(self, pairs: Sequence[TokenizedPair], prompts: Sequence[Sequence[int]], weight: Tensor) -> PairBatch:
        width = max(
            len(prompt) + max(len(side.ids) for side in pair.sides)
            for pair, prompt in zip(pairs, prompts, strict=True)
        )
        ids = torch.full((len(pairs), 2, width), self.pad)
        mask = torch.zeros(len(pairs), 2, width, dtype=torch.bool)
        lengths = torch.zeros(len(pairs), 2, dtype=torch.long)
        for row, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
            for side, response in enumerate(pair.sides):
                start, end = len(prompt), len(prompt) + len(response.ids)
                ids[row, side, :end] = torch.tensor([*prompt, *response.ids])
                mask[row, side, start:end] = torch.tensor(response.scored)
                lengths[row, side] = end
        return PairBatch(
            input_ids=ids,
            attention_mask=torch.arange(width) < lengths.unsqueeze(-1),
            mask=mask,
            truncated=torch.tensor([[side.truncated for side in pair.sides] for pair in pairs]),
            weight=weight,
            index=torch.tensor([pair.index for pair in pairs]),
        )


def _with_others(pair: TokenizedPair) -> TokenizedPair:
    chosen, rejected = pair.mismatched or pair.sides
    return replace(pair, chosen=chosen, rejected=rejected)


def _numbers(pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """What the data says of each pair beside its tokens; nothing where it says nothing."""
    names = ("margin", "preference_probability")
    values = {name: [getattr(pair, name) for pair in pairs] for name in names}
    return {name: torch.tensor(found) for name, found in values.items() if None not in found}
