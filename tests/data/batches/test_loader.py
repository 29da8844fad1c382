from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import PairDataset
from lit_align.data.batches.loader import BatchBudget, ResumableLoader, check_same_data, evaluation_loader
from lit_align.data.batches.sampler import BucketedBatches, SequentialBatches, Share, TokenBatches
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
    """Return the rows of an epoch's batches, which are taken like a trainer does."""
    assert isinstance(data.sampler, BucketedBatches)
    data.sampler.set_epoch(number)
    batches = iter(data)
    return [next(batches).index.tolist() for _ in range(len(data) if stop is None else stop)]


def test_the_length_is_the_plans() -> None:
    assert len(loader()) == 6


@pytest.mark.slow
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
    """As many pairs of the largest length as fit: 40 // (2 × 10)."""
    assert BatchBudget.from_settings(None, 40, None).evaluation(WIDTHS, Share(1)).plan() == [[0, 1], [2]]
    assert BatchBudget.from_settings(None, 40, 3).evaluation(WIDTHS, Share(1)).plan() == [[0, 1, 2]]
    assert BatchBudget.from_settings(None, 4, None).evaluation([], Share(1)).plan() == []


SAVED = {"fingerprint": "a", "template": "t", "seed": 0, "tokens": 64, "processes": 1, "accumulate": 1}


def test_the_same_data_is_the_same() -> None:
    check_same_data(SAVED, SAVED, inside_epoch=True)


def test_other_pairs_never_are_and_everything_that_differs_is_named() -> None:
    with pytest.raises(ValueError, match="fingerprint .* was a and is b; the hash of .* template was t and is u"):
        check_same_data(SAVED, {**SAVED, "fingerprint": "b", "template": "u"}, inside_epoch=False)


def test_another_template_that_changes_no_pair_is_no_other_data() -> None:
    check_same_data(SAVED, {**SAVED, "template": "u"}, inside_epoch=True)


@pytest.mark.parametrize(("key", "words"), [("tokens", r"data\.tokens_per_batch"), ("processes", "processes")])
def test_other_batches_matter_inside_an_epoch(key: str, words: str) -> None:
    check_same_data(SAVED, {**SAVED, key: 9}, inside_epoch=False)
    with pytest.raises(ValueError, match=f"{words} was .* and is 9"):
        check_same_data(SAVED, {**SAVED, key: 9}, inside_epoch=True)


def test_a_budget_of_another_kind_is_named_too() -> None:
    pairs = {"fingerprint": "a", "template": "t", "seed": 0, "global_batch": 8, "step": 8}
    with pytest.raises(ValueError, match=r"tokens_per_batch was 64 and is None"):
        check_same_data(SAVED, pairs, inside_epoch=True)
