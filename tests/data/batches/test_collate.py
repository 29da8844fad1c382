from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.batches.collate import Collate, Padding
from lit_align.data.batches.sampler import BucketedBatches, SequentialBatches, Share, TokenBatches
from lit_align.types import TokenizedPair, TokenizedResponse

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
IDS = st.lists(st.integers(10, 99), min_size=1, max_size=7)
RESPONSES = st.builds(lambda ids, cut: TokenizedResponse(ids, [True] * len(ids), cut), IDS, st.booleans())
ITEMS = st.tuples(
    st.builds(TokenizedPair, IDS, RESPONSES, RESPONSES, IDS, st.integers(0, 1000)), st.sampled_from([0.0, 1.0])
)


@given(items=st.lists(ITEMS, min_size=1, max_size=5))
def test_every_row_can_be_read_back(items: list[tuple[TokenizedPair, float]]) -> None:
    batch = Collate(pad=0)(items)
    assert batch.prompted is not None
    for row, (pair, weight) in enumerate(items):
        assert batch.weight[row] == weight
        assert batch.index[row] == pair.index
        for side, response in enumerate(pair.sides):
            for part, prompt in ((batch, pair.prompt), (batch.prompted, pair.prompted or [])):
                seen = part.attention_mask[row, side]
                assert part.input_ids[row, side][seen].tolist() == [*prompt, *response.ids]
                assert part.input_ids[row, side][part.mask[row, side]].tolist() == list(response.ids)
                assert bool(seen[: int(seen.sum())].all())
                assert set(part.input_ids[row, side][~seen].tolist()) <= {0}
                assert bool(part.truncated[row, side]) == response.truncated
    for part in (batch, batch.prompted):
        assert bool(part.attention_mask.any(0).any(0)[-1])


def test_tokens_that_are_not_scored_stay_out_of_the_mask() -> None:
    pair = TokenizedPair([1], TokenizedResponse([2, 3], [False, True]), TokenizedResponse([4], [True]))
    assert Collate(0)([(pair, 1.0)]).mask.int().tolist() == [[[0, 0, 1], [0, 1, 0]]]


def test_padding_of_any_id_gives_the_same_masks() -> None:
    pair = TokenizedPair([1], TokenizedResponse([2, 3], [True, True]), TokenizedResponse([4], [True]))
    one, other = Collate(0)([(pair, 1.0)]), Collate(2)([(pair, 1.0)])
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.attention_mask, other.attention_mask)
    assert one.prompted is None


WIDTHS = [4, 4, 8]
TOKENS = np.array([8, 6, 16])


def test_padding_is_the_share_of_positions_without_a_token() -> None:
    """Batches (4, 4) and (8): 16 and 16 positions, 30 of them tokens."""
    fill = Padding.of(SequentialBatches(range(3), Share(2)), WIDTHS, TOKENS)
    assert fill == Padding(batches=2, fewest=1, most=2, padding=2 / 32, copies=0)
    assert fill.line() == "2 of 1 to 2 pairs; padded rows would hold 6.2 % padding"


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
