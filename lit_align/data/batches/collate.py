"""Collating tokenized pairs into padded tensors, and measuring the padding of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.data.batches.sampler import PairBatches
from lit_align.types import PairBatch, TokenizedPair


@dataclass(frozen=True)
class Collate:
    """Pad pairs on the right to the longest sequence of the batch; both sides have the same width.

    Args:
        pad: padding id; no result depends on it.
        pack: computes ahead what a model reads of a batch; None leaves that to the model's process.

    >>> from lit_align.types import TokenizedResponse
    >>> pair = TokenizedPair([1, 2], TokenizedResponse([3], [True]), TokenizedResponse([4, 5], [True, True]))
    >>> batch = Collate(pad=0)([(pair, 1.0)])
    >>> batch.input_ids.tolist(), batch.mask.int().tolist()
    ([[[1, 2, 3, 0], [1, 2, 4, 5]]], [[[0, 0, 1, 0], [0, 0, 1, 1]]])
    """

    pad: int
    pack: Callable[[PairBatch], PairBatch] | None = None

    def __call__(self, items: Sequence[tuple[TokenizedPair, float]]) -> PairBatch:
        """Build a batch, with ``prompted`` and ``mismatched`` parts if the pairs have them."""
        pairs = [pair for pair, _ in items]
        weight = torch.tensor([weight * pair.weight for pair, weight in items])
        batch = self._batch(pairs, [pair.prompt for pair in pairs], weight)
        prompted = [pair.prompted for pair in pairs if pair.prompted is not None]
        mismatched = [
            replace(pair, chosen=pair.mismatched[0], rejected=pair.mismatched[1]) for pair in pairs if pair.mismatched
        ]
        whole = replace(
            batch,
            **_numbers(pairs),
            prompted=self._batch(pairs, prompted, weight) if prompted else None,
            mismatched=self._batch(mismatched, [pair.prompt for pair in pairs], weight) if mismatched else None,
        )
        return whole if self.pack is None else self.pack(whole)

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


def _numbers(pairs: Sequence[TokenizedPair]) -> dict[str, Any]:
    """Return the numeric columns that the data has."""
    names = ("margin", "preference_probability")
    values = {name: [getattr(pair, name) for pair in pairs] for name in names}
    return {name: torch.tensor(column) for name, column in values.items() if None not in column}


@dataclass(frozen=True)
class Padding:
    """Sizes and padding of the batches of an epoch.

    Args:
        batches: number of batches per process.
        fewest: pairs in the smallest global batch.
        most: pairs in the largest global batch.
        padding: share of the positions of all batches that hold no token.
        copies: copies of weight 0, for processes that a batch has no pair for.

    >>> Padding(batches=10, fewest=4, most=8, padding=0.031, copies=0).line()
    '10 of 4 to 8 pairs; padded rows would hold 3.1 % padding'
    """

    batches: int
    fewest: int
    most: int
    padding: float
    copies: int

    @classmethod
    def of(cls, batches: PairBatches, widths: Sequence[int], tokens: NDArray[np.int64]) -> Padding:
        """Measure an epoch over all ranks, without the prompted and mismatched parts of the batches."""
        plan, world = batches.plan(), batches.share.world
        ranks = [rows[rank::world] or rows[:1] for rows in plan for rank in range(world)]
        positions = sum(2 * len(rows) * max(widths[row] for row in rows) for rows in ranks)
        sizes = [len(rows) for rows in plan]
        return cls(
            batches=len(plan),
            fewest=min(sizes, default=0),
            most=max(sizes, default=0),
            padding=1 - int(tokens.sum()) / positions if positions else 0.0,
            copies=sum(max(0, world - size) for size in sizes),
        )

    def line(self) -> str:
        """Return a summary in one line."""
        pairs = f"{self.most}" if self.fewest == self.most else f"{self.fewest} to {self.most}"
        idle = f"; {self.copies} copies of weight 0 keep all processes busy" if self.copies else ""
        return (
            f"{self.batches:,} of {pairs} pairs; padded rows would hold {self.padding:.1%}".replace("%", " %")
            + f" padding{idle}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
