"""A budget says how much goes into a batch: a number of pairs, or a number of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from lit_align.data.errors import check_range
from lit_align.data.sampler import BucketedBatches, PairBatches, SequentialBatches, Share
from lit_align.data.token_batches import TokenBatches

PAIRS = 8


class Budget(ABC):
    """How much goes into a batch of one process."""

    @abstractmethod
    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """The shuffled batches of the training pairs.

        Args:
            widths: what each pair costs, in tokens of one side.
            share: rank, world and accumulation.
            seed: of the order.
        """

    @abstractmethod
    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """The batches of an evaluation, in the order of the data."""

    @abstractmethod
    def step(self, share: Share) -> int:
        """Pairs of an optimizer step; 0 where that is another number in every step."""


@final
@dataclass(frozen=True)
class PairBudget(Budget):
    """So many pairs.

    Args:
        pairs: in a training batch.
        evaluated: in a batch of evaluation.
    """

    pairs: int
    evaluated: int

    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """See the base class."""
        return BucketedBatches(widths, replace(share, batch_size=self.pairs), seed)

    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """See the base class."""
        return SequentialBatches(len(widths), replace(share, batch_size=self.evaluated))

    def step(self, share: Share) -> int:
        """See the base class."""
        return replace(share, batch_size=self.pairs).step_size


@final
@dataclass(frozen=True)
class TokenBudget(Budget):
    """So many tokens of both sides, padding included.

    Args:
        tokens: in a batch.
        evaluated: pairs in a batch of evaluation; None for as many as fit whatever their lengths.
    """

    tokens: int
    evaluated: int | None

    def training(self, widths: Sequence[int], share: Share, seed: int) -> PairBatches:
        """See the base class."""
        return TokenBatches(widths, self.tokens, share, seed)

    def evaluation(self, widths: Sequence[int], share: Share) -> SequentialBatches:
        """See the base class."""
        fitting = max(1, self.tokens // (2 * max(widths, default=1)))
        return SequentialBatches(len(widths), replace(share, batch_size=self.evaluated or fitting))

    def step(self, share: Share) -> int:
        """See the base class."""
        return 0


def budget_of(batch_size: int | None, tokens_per_batch: int | None, eval_batch_size: int | None) -> Budget:
    """The budget that the settings ask for.

    Args:
        batch_size: pairs per process and batch; None for 8, unless there is a number of tokens.
        tokens_per_batch: tokens per process and batch.
        eval_batch_size: pairs per process and batch of evaluation.

    Raises:
        ValueError: a number is out of its range, or both pairs and tokens are set.

    >>> budget_of(None, None, None)
    PairBudget(pairs=8, evaluated=8)
    """
    check_range("data.batch_size", batch_size, 1)
    check_range("data.tokens_per_batch", tokens_per_batch, 2)
    check_range("data.eval_batch_size", eval_batch_size, 1)
    if tokens_per_batch is None:
        return PairBudget(batch_size or PAIRS, eval_batch_size or batch_size or PAIRS)
    if batch_size is not None:
        raise ValueError("data.batch_size and data.tokens_per_batch are both set; expected one of them")
    return TokenBudget(tokens_per_batch, eval_batch_size)
