from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.batches.collate import Collate
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
