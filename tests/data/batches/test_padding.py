from __future__ import annotations

import numpy as np
import pytest

from lit_align.data.batches.collate import Padding
from lit_align.data.batches.sampler import BucketedBatches, SequentialBatches, Share, TokenBatches

WIDTHS = [4, 4, 8]
TOKENS = np.array([8, 6, 16])


def test_padding_is_the_share_of_positions_without_a_token() -> None:
    """Batches (4, 4) and (8): 16 and 16 positions, 30 of them tokens."""
    fill = Padding.of(SequentialBatches(range(3), Share(2)), WIDTHS, TOKENS)
    assert fill == Padding(batches=2, fewest=1, most=2, padding=2 / 32, copies=0)
    assert fill.line() == "2 of 1 to 2 pairs; 6.2 % padding"


def test_copies_are_counted_and_their_positions_are_padding() -> None:
    fill = Padding.of(SequentialBatches(range(3), Share(1, world=2)), WIDTHS, TOKENS)
    assert (fill.batches, fill.copies) == (2, 1)
    assert fill.padding == pytest.approx(1 - 30 / (8 + 8 + 16 + 16))
    assert "1 copies of weight 0" in fill.line()


def test_it_is_the_same_in_every_epoch_up_to_the_widths() -> None:
    plan = TokenBatches(WIDTHS * 5, 64, Share(1), 0)
    first = Padding.of(plan, WIDTHS * 5, np.tile(TOKENS, 5))
    plan.set_epoch(1)
    second = Padding.of(plan, WIDTHS * 5, np.tile(TOKENS, 5))
    assert (first.batches, first.fewest, first.most) == (second.batches, second.fewest, second.most)


def test_no_pairs() -> None:
    assert Padding.of(BucketedBatches([], Share(2), 0), [], np.array([], dtype=np.int64)).padding == 0
