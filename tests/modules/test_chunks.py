"""Chunks of a batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from lit_align.data.batches.collate import Collate
from lit_align.modules.grad_cache import even_ends, split_into_chunks
from lit_align.types import TokenizedPair, TokenizedResponse

ALONE = Trainer(accelerator="cpu", devices=1, barebones=True)


def batch_of(lengths: list[int]) -> Any:
    response = TokenizedResponse([3, 4], [True, True])
    pairs = [TokenizedPair([1] * length, response, response, index=row) for row, length in enumerate(lengths)]
    return Collate(pad=0)([(pair, 1.0) for pair in pairs])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 20))
def test_every_part_has_something_and_all_of_it_is_there(sizes: list[int], count: int) -> None:
    count = min(count, len(sizes))
    ends = even_ends(sizes, count)
    assert len(ends) == count
    assert ends[-1] == len(sizes)
    assert all(a < b for a, b in zip([0, *ends], ends, strict=False))


def test_a_long_pair_stands_alone_and_no_part_is_padded_to_it() -> None:
    batch = batch_of([2, 2, 40, 2])  # 8, 8, 84, 8 tokens
    parts = split_into_chunks(batch, 30, ALONE)
    assert [part.index.tolist() for part in parts] == [[0], [1], [2], [3]]
    assert [part.input_ids.shape[-1] for part in parts] == [4, 4, 42, 4]


@pytest.mark.parametrize("tokens", [0, 10_000])
def test_one_portion_where_there_is_no_limit_or_it_is_not_reached(tokens: int) -> None:
    (part,) = split_into_chunks(batch_of([2, 3]), tokens, ALONE)
    assert part.index.tolist() == [0, 1]
