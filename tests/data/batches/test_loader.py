from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import PairDataset
from lit_align.data.batches.loader import ResumableLoader, evaluation_loader
from lit_align.data.batches.sampler import BucketedBatches, SequentialBatches, Share
from lit_align.data.prepared.store import PairStore
from lit_align.types import PairBatch, TokenizedPair, TokenizedResponse

COUNT, SIZE = 22, 4
STORE = PairStore.of(
    [
        TokenizedPair([1], TokenizedResponse([2] * (1 + n % 5), [True] * (1 + n % 5)), TokenizedResponse([n], [True]))
        for n in range(COUNT)
    ]
)


def loader(workers: int = 0, limit: int | None = None) -> ResumableLoader:
    plan = BucketedBatches(STORE.widths.tolist(), Share(SIZE), seed=3)
    return ResumableLoader(PairDataset(STORE), plan, Collate(0), limit, workers)


def epoch(data: ResumableLoader, number: int, stop: int | None = None) -> list[list[int]]:
    """The rows of one epoch's batches, as a trainer takes them: it never asks for more than there are."""
    assert isinstance(data.sampler, BucketedBatches)
    data.sampler.set_epoch(number)
    batches = iter(data)
    return [next(batches).index.tolist() for _ in range(len(data) if stop is None else stop)]


def test_the_length_is_the_plans() -> None:
    assert len(loader()) == 6


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.resume("batches that workers had read ahead")
def test_a_resumed_run_sees_what_the_first_one_would_have_seen(workers: int) -> None:
    whole = loader()
    expected = [*epoch(whole, 0), *epoch(whole, 1)]
    for done in range(1, len(whole) + 1) if workers == 0 else (2, 6):
        first = loader(workers)
        seen = epoch(first, 0, stop=done)
        state = first.state_dict()
        second = loader(workers)
        second.load_state_dict(state)
        if state["done"]:
            seen += epoch(second, 0, stop=len(whole) - done)
        seen += epoch(second, 1)
        assert seen == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_counted_when_they_are_handed_out_not_when_they_are_made(workers: int) -> None:
    data = loader(workers)
    assert data.state_dict() == {"done": 0, "epoch": 0}
    epoch(data, 4, stop=1)
    assert data.state_dict() == {"done": 1, "epoch": 4}


def test_behind_the_last_batch_of_an_epoch_the_next_one_begins_at_its_start() -> None:
    data = loader()
    epoch(data, 0)
    assert data.state_dict()["done"] == 0


def test_an_epoch_cut_short_ends_where_it_is_cut() -> None:
    data = loader(limit=2)
    epoch(data, 0, stop=2)
    assert data.state_dict()["done"] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    before = torch.get_rng_state()
    epoch(loader(workers), 0)
    list(evaluation_loader(PairDataset(STORE), SequentialBatches(range(COUNT), Share(SIZE)), Collate(0), workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_evaluation_takes_every_pair_once_in_order() -> None:
    data: Any = evaluation_loader(PairDataset(STORE), SequentialBatches(range(COUNT), Share(SIZE)), Collate(0))
    batches: list[PairBatch] = list(data)
    assert [row for batch in batches for row in batch.index.tolist()] == list(range(COUNT))


def test_a_sampler_put_in_by_the_trainer_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match="set trainer.use_distributed_sampler to false"):
        PairDataset(STORE)[3]
