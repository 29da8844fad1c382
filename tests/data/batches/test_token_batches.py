from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.batches.sampler import BucketedBatches, Item, Share, TokenBatches

widths_lists = st.lists(st.integers(1, 60), min_size=1, max_size=90)
worlds, seeds, budgets = st.integers(1, 4), st.integers(0, 2**40), st.integers(120, 700)


def batches_of(
    widths: list[int], tokens: int, share: Share = Share(1), seed: int = 0, epoch: int = 0
) -> list[list[Item]]:
    plan = TokenBatches(widths, tokens, share, seed)
    plan.set_epoch(epoch)
    batches = list(plan)
    assert len(batches) == len(plan)
    return batches


def rows(batch: list[Item]) -> list[int]:
    return [row for row, weight in batch if weight]


@given(widths=widths_lists, tokens=budgets, world=worlds, seed=seeds, epoch=st.integers(0, 3))
def test_every_pair_counts_once_in_an_epoch_and_every_rank_has_as_many_batches(
    widths: list[int], tokens: int, world: int, seed: int, epoch: int
) -> None:
    ranks = [batches_of(widths, tokens, Share(1, rank, world), seed, epoch) for rank in range(world)]
    seen = Counter(row for batches in ranks for batch in batches for row in rows(batch))
    assert seen == Counter(range(len(widths)))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(batch for batches in ranks for batch in batches)
    for step in zip(*ranks, strict=True):
        assert sum(len(rows(batch)) for batch in step) >= 1


@given(widths=widths_lists, tokens=budgets, world=worlds, seed=seeds)
def test_no_batch_is_over_the_budget_padding_included(widths: list[int], tokens: int, world: int, seed: int) -> None:
    for rank in range(world):
        for batch in batches_of(widths, tokens, Share(1, rank, world), seed):
            assert 2 * len(batch) * max(widths[row] for row, _ in batch) <= tokens


@given(widths=widths_lists, tokens=budgets, world=worlds, accumulate=st.integers(1, 3))
def test_the_number_of_batches_is_the_same_in_every_epoch_and_for_every_seed(
    widths: list[int], tokens: int, world: int, accumulate: int
) -> None:
    """Lightning freezes the number of batches at the first epoch."""
    share = Share(1, 0, world, accumulate)
    assert len({len(batches_of(widths, tokens, share, seed, epoch)) for seed in (0, 7) for epoch in range(4)}) == 1


def test_packing_each_epoch_anew_gives_other_numbers_of_batches() -> None:
    """A wrong variant of the law: shuffle, then fill batches until the next pair does not fit."""

    def packed(seed: int) -> int:
        order = random.Random(seed).sample(WIDTHS, len(WIDTHS))
        count, held = 1, []
        for width in order:
            held = [*held, width]
            if 2 * len(held) * max(held) > 600:
                count, held = count + 1, [width]
        return count

    assert len({packed(seed) for seed in range(8)}) > 1


WIDTHS = [random.Random(number).randint(10, 120) for number in range(1500)]


def test_what_is_in_a_batch_changes_from_epoch_to_epoch() -> None:
    first, second = ({frozenset(rows(batch)) for batch in batches_of(WIDTHS, 4000, epoch=e)} for e in (0, 1))
    assert len(first & second) < 0.05 * len(first)
    assert batches_of(WIDTHS, 4000) == batches_of(WIDTHS, 4000)
    assert batches_of(WIDTHS, 4000, seed=1) != batches_of(WIDTHS, 4000)


def test_batches_are_full() -> None:
    """With 1,200 pairs or more, 95 % of the budget are tokens, while the number of pairs per batch varies."""
    batches = batches_of(WIDTHS, 4000)
    filled = sum(2 * sum(WIDTHS[row] for row in rows(batch)) for batch in batches)
    assert filled > 0.88 * 4000 * len(batches)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) > 4 * min(sizes)


def test_no_batch_is_a_small_rest() -> None:
    """The last batches are split evenly: 10 pairs with at most 9 per batch are 5 and 5."""
    assert [len(batch) for batch in batches_of([10] * 10, 180)] == [5, 5]


def test_long_and_short_batches_are_mixed() -> None:
    means = torch.tensor([sum(WIDTHS[row] for row in rows(batch)) / len(batch) for batch in batches_of(WIDTHS, 2000)])
    order = torch.arange(len(means), dtype=torch.float32)
    assert abs(torch.corrcoef(torch.stack([order, means]))[0, 1]) < 0.3


@given(widths=widths_lists, tokens=budgets, skip=st.integers(0, 10))
@pytest.mark.resume("the rest of a pass of batches by a token budget")
def test_a_resumed_pass_is_the_rest_of_the_whole_one_and_only_that_pass(
    widths: list[int], tokens: int, skip: int
) -> None:
    whole = batches_of(widths, tokens)
    plan = TokenBatches(widths, tokens, Share(1), 0)
    plan.skip = skip
    assert list(plan) == whole[skip:]
    assert list(plan) == whole


def test_a_pair_longer_than_the_budget_is_named_with_both_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"data\.tokens_per_batch is 100, .* take 2 × 51 tokens; expected 102 or more"
    ):
        TokenBatches([3, 51], 100, Share(1), 0)


def test_no_pairs_no_batches() -> None:
    assert batches_of([], 100) == []


def test_what_a_position_is_a_position_in() -> None:
    assert TokenBatches([1], 100, Share(1, 1, 2, 3), 0).identity == {"tokens": 100, "processes": 2, "accumulate": 3}
    assert BucketedBatches([1], Share(4, 1, 2, 3), 0).identity == {"global_batch": 8, "step": 24}
