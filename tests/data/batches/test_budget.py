from __future__ import annotations

from typing import Any

import pytest

from lit_align.data.batches.loader import BatchBudget
from lit_align.data.batches.sampler import BucketedBatches, Share, TokenBatches

WIDTHS = [4, 6, 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, None, None), "data.batch_size is 0; expected 1 or more"),
        ((None, 1, None), "data.tokens_per_batch is 1; expected 2 or more"),
        ((None, None, -1), "data.eval_batch_size is -1"),
        ((4, 100, None), "batch_size and data.tokens_per_batch are both set; expected one of them"),
    ],
)
def test_what_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchBudget.from_settings(*settings)


def test_pairs() -> None:
    budget = BatchBudget.from_settings(4, None, None)
    assert budget == BatchBudget(4, None, 4)
    assert isinstance(budget.training(WIDTHS, Share(1), 0), BucketedBatches)
    assert budget.step_size(Share(1, world=2, accumulate=3)) == 24
    assert len(BatchBudget.from_settings(4, None, 1).evaluation(WIDTHS, Share(1))) == 3


def test_tokens() -> None:
    budget = BatchBudget.from_settings(None, 40, None)
    assert budget == BatchBudget(None, 40, None)
    assert isinstance(budget.training(WIDTHS, Share(1), 0), TokenBatches)
    assert budget.step_size(Share(1)) == 0


def test_an_evaluation_within_a_number_of_tokens_keeps_the_order() -> None:
    """As many of the longest pair as fit: 40 // (2 × 10)."""
    assert BatchBudget.from_settings(None, 40, None).evaluation(WIDTHS, Share(1)).plan() == [[0, 1], [2]]
    assert BatchBudget.from_settings(None, 40, 3).evaluation(WIDTHS, Share(1)).plan() == [[0, 1, 2]]
    assert BatchBudget.from_settings(None, 4, None).evaluation([], Share(1)).plan() == []
