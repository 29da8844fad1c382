from __future__ import annotations

import random
from collections import Counter
from itertools import zip_longest
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from lit_align.data.batches.sampler import BucketedBatches, Item, PairBatches, SequentialBatches, Share

counts, sizes, worlds, seeds = st.integers(1, 90), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**40)
plans = st.sampled_from([BucketedBatches, SequentialBatches])


def widths_of(count: int) -> list[int]:
    return [random.Random(number).randint(1, 50) for number in range(count)]


def plan_of(kind: type[PairBatches], count: int, share: Share, seed: int = 0) -> PairBatches:
    if kind is SequentialBatches:
        return SequentialBatches(range(count), share)
    return BucketedBatches(widths_of(count), share, seed, pool=3)


def batches_of(kind: type[PairBatches], count: int, share: Share, seed: int = 0, epoch: int = 0) -> list[list[Item]]:
    plan = plan_of(kind, count, share, seed)
    plan.set_epoch(epoch)
    batches = list(plan)
    assert len(batches) == len(plan)
    return batches


def of_all_ranks(kind: type[PairBatches], count: int, size: int, world: int, seed: int = 0) -> list[list[list[Item]]]:
    return [batches_of(kind, count, Share(size, rank, world), seed) for rank in range(world)]


def rows(batch: list[Item]) -> list[int]:
    return [row for row, weight in batch if weight]


@given(kind=plans, count=counts, size=sizes, world=worlds, seed=seeds)
def test_every_pair_counts_once_in_an_epoch(
    kind: type[PairBatches], count: int, size: int, world: int, seed: int
) -> None:
    ranks = of_all_ranks(kind, count, size, world, seed)
    seen = Counter(row for batches in ranks for batch in batches for row in rows(batch))
    assert seen == Counter(range(count))


def test_the_usual_distributed_sampler_counts_a_pair_twice() -> None:
    """A wrong variant of the law: copies that pad the batches of a rank count."""
    pairs: Any = range(5)
    ranks = [list(DistributedSampler(pairs, num_replicas=2, rank=rank, shuffle=False)) for rank in range(2)]
    assert Counter(row for rows_ in ranks for row in rows_) != Counter(range(5))


@given(kind=plans, count=counts, size=sizes, world=worlds)
@pytest.mark.fault("LE3")
def test_every_rank_has_the_same_number_of_batches_and_none_is_empty(
    kind: type[PairBatches], count: int, size: int, world: int
) -> None:
    ranks = of_all_ranks(kind, count, size, world)
    assert {len(batches) for batches in ranks} == {-(-count // (size * world))}
    for batches in ranks:
        for batch in batches:
            assert 1 <= len(batch) <= size
            assert {weight for _, weight in batch} in ({1.0}, {0.0})
            assert len(batch) == 1 or rows(batch)


@given(kind=plans, count=counts, world=st.sampled_from([1, 2, 3, 4]), seed=seeds)
def test_global_batches_do_not_depend_on_how_they_are_split(
    kind: type[PairBatches], count: int, world: int, seed: int
) -> None:
    whole = [sorted(rows(batch)) for batch in batches_of(kind, count, Share(12), seed)]
    ranks = of_all_ranks(kind, count, 12 // world, world, seed)
    assert [sorted(row for batch in step for row in rows(batch)) for step in zip_longest(*ranks)] == whole


@given(count=counts, split=st.sampled_from([(12, 1, 1), (6, 2, 1), (6, 1, 2), (1, 4, 3), (3, 2, 2)]), seed=seeds)
def test_an_optimizer_step_holds_the_same_pairs_however_it_is_split(
    count: int, split: tuple[int, int, int], seed: int
) -> None:
    size, world, accumulate = split
    whole = [sorted(rows(batch)) for batch in batches_of(BucketedBatches, count, Share(12), seed)]
    ranks = [batches_of(BucketedBatches, count, Share(size, rank, world, accumulate), seed) for rank in range(world)]
    batches = [[row for batch in step for row in rows(batch)] for step in zip_longest(*ranks)]
    steps = [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]
    assert [sorted(row for batch in step for row in batch) for step in steps] == whole


def test_the_epoch_the_seed_and_nothing_else_change_the_order() -> None:
    first = batches_of(BucketedBatches, 60, Share(4))
    random.seed(1)
    torch.manual_seed(1)
    assert batches_of(BucketedBatches, 60, Share(4)) == first
    assert batches_of(BucketedBatches, 60, Share(4), epoch=1) != first
    assert batches_of(BucketedBatches, 60, Share(4), seed=1) != first


def test_asking_for_an_order_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    batches_of(BucketedBatches, 60, Share(4))
    assert torch.equal(torch.get_rng_state(), before)


@given(kind=plans, count=counts, size=sizes, world=worlds, skip=st.integers(0, 10))
@pytest.mark.resume("the rest of a pass over the rows")
def test_a_resumed_pass_is_the_rest_of_the_whole_one_and_only_that_pass(
    kind: type[PairBatches], count: int, size: int, world: int, skip: int
) -> None:
    share = Share(size, world - 1, world)
    whole = batches_of(kind, count, share)
    plan = plan_of(kind, count, share)
    plan.skip = skip
    assert list(plan) == whole[skip:]
    assert list(plan) == whole


def test_pairs_of_a_batch_are_about_equally_long() -> None:
    widths = widths_of(2000)

    def padded(batches: list[list[Item]]) -> int:
        return sum(max(widths[row] for row in rows(batch)) * len(batch) for batch in batches)

    bucketed = list(BucketedBatches(widths, Share(8), 0))
    shuffled = list(BucketedBatches(widths, Share(8), 0, pool=1))
    assert padded(bucketed) < 1.1 * sum(widths) < 1.5 * sum(widths) < padded(shuffled)


def test_long_and_short_batches_are_mixed() -> None:
    widths = list(range(400))
    means = torch.tensor([sum(rows(batch)) / len(batch) for batch in BucketedBatches(widths, Share(4), 0)])
    order = torch.arange(len(means), dtype=torch.float32)
    assert abs(torch.corrcoef(torch.stack([order, means]))[0, 1]) < 0.3


def test_sequential_batches_keep_the_order_of_the_data() -> None:
    batches = batches_of(SequentialBatches, 5, Share(2))
    assert [rows(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("kind", [BucketedBatches, SequentialBatches])
def test_no_pairs_no_batches(kind: type[PairBatches]) -> None:
    assert batches_of(kind, 0, Share(2)) == []
