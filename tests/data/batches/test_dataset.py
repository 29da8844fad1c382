"""Mismatched pairs have fixed partners, keep the limits, and do not depend on batches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data import PreferenceData
from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import Mismatch, PairDataset
from lit_align.data.prepared.arrow import PairValues
from lit_align.data.prepared.store import PairStore
from lit_align.types import PreferencePair, TokenizedPair, TokenizedResponse

pytestmark = pytest.mark.filterwarnings("ignore:(Do not use the `random` module|.*PossibleUserWarning)")


def whole(ids: list[int]) -> TokenizedResponse:
    return TokenizedResponse(ids, [True] * len(ids))


def store_of(prompts: list[int]) -> PairStore:
    """Return pairs with prompts of one token and responses that contain their position."""
    return PairStore.of(
        [
            TokenizedPair([1, 100 + prompt], whole([place, 2]), whole([place, 3, 2]))
            for place, prompt in enumerate(prompts)
        ]
    )


@given(prompts=st.lists(st.integers(0, 5), min_size=2, max_size=40), seed=st.integers(0, 5))
def test_everyone_is_somebody_else_s_partner_once(prompts: list[int], seed: int) -> None:
    found = Mismatch.of(store_of(prompts), seed, 9).partners
    assert sorted(found.tolist()) == list(range(len(prompts)))
    assert all(place != partner for place, partner in enumerate(found))
    if 2 * max(prompts.count(prompt) for prompt in prompts) <= len(prompts):
        assert all(prompts[place] != prompts[partner] for place, partner in enumerate(found))


def test_partners_depend_on_the_seed_alone() -> None:
    store = store_of(list(range(20)))
    first, again, other = (Mismatch.of(store, seed, 9).partners for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


def test_one_pair_has_no_partner() -> None:
    with pytest.raises(ValueError, match="the split has only one"):
        Mismatch.of(store_of([0]), 0, 9)


def test_responses_are_cut_behind_a_long_prompt() -> None:
    """With a maximum length of 5, one token fits after a prompt of four, and all tokens after a prompt of one."""
    pairs = [TokenizedPair([1, 2, 3, 4], whole([9]), whole([8])), TokenizedPair([1], whole([5, 6, 7]), whole([]))]
    crossed = PairDataset(PairStore.of(pairs), mismatch=Mismatch(np.array([1, 0]), max_length=5))
    assert crossed.pair(0).mismatched == (TokenizedResponse([5], [True], truncated=True), whole([]))
    assert crossed.pair(1).mismatched == (whole([9]), whole([8]))
    assert crossed.widths == [5, 4]
    batch = Collate(0)(crossed[[(0, 1.0), (1, 1.0)]])
    assert batch.mismatched is not None
    assert batch.mismatched.input_ids.tolist() == [
        [[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]],
        [[1, 9, 0, 0, 0], [1, 8, 0, 0, 0]],
    ]
    assert batch.mismatched.mask.sum(-1).tolist() == [[1, 0], [1, 1]]
    assert batch.mismatched.truncated.tolist() == [[True, False], [False, False]]


def data(path: Path, **settings: object) -> PreferenceData:
    found = PreferenceData(train=str(path), tokenizer="testbed:policy", mismatched=True, seed=0, **settings)  # type: ignore[arg-type]
    found.prepare_all()
    return found


def seen(found: PreferenceData) -> dict[int, list[list[int]]]:
    """Row → the ids of both mismatched sequences, of an epoch."""
    rows = {}
    for batch in found.train_dataloader():
        assert batch.mismatched is not None
        assert batch.mismatched.index.equal(batch.index)
        for place, index in enumerate(batch.index.tolist()):
            ids, there = batch.mismatched.input_ids[place], batch.mismatched.attention_mask[place]
            rows[index] = [ids[side][there[side]].tolist() for side in (0, 1)]
    return rows


def test_batches_change_no_partner(rows: Path) -> None:
    by_pairs, by_tokens = seen(data(rows, batch_size=3)), seen(data(rows, tokens_per_batch=600))
    assert len(by_pairs) == 11
    assert by_pairs == by_tokens


def test_each_row_has_another_s_responses_behind_its_own_prompt(rows: Path) -> None:
    found = data(rows, batch_size=4)
    pairs = found.splits["train"].store
    for row, sequences in seen(found).items():
        own = pairs[row]
        for side, ids in enumerate(sequences):
            assert ids[: len(own.prompt)] == list(own.prompt)
            response = ids[len(own.prompt) :]
            assert response != list(own.sides[side].ids)
            assert response in [list(pair.sides[side].ids) for pair in pairs]


def test_the_limits_hold_and_the_budget_counts_them(tmp_path: Path) -> None:
    """A long prompt with a short response and the reverse: the mismatched pair is longer than both."""
    path = tmp_path / "pairs.jsonl"
    lines = [("He sings. " * 20, " Yes.", " No."), ("Who?", " He sings." * 18, " He reads." * 18)] * 2
    row = ("prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(row, line, strict=True))) + "\n" for line in lines), "utf-8")
    found = data(path, tokens_per_batch=200, max_length=64)
    budget = [int(batch.mismatched.input_ids.numel()) for batch in found.train_dataloader() if batch.mismatched]
    assert len(budget) == 4 // (200 // (2 * 64))
    assert max(budget) <= 200
    widths = [batch.mismatched.input_ids.shape[-1] for batch in found.train_dataloader() if batch.mismatched]
    assert max(widths) == 64 == found.longest


PAIR = PreferencePair("p", "a", "b")
IDS = TokenizedPair([1], TokenizedResponse([2], [True]), TokenizedResponse([3], [True]))


def values(*changes: dict[str, Any]) -> PairValues:
    return PairValues.of([replace(PAIR, **change) for change in changes])


def test_pairs_that_say_nothing_are_plain() -> None:
    found = values({}, {"scores": (1.0, 2.0), "source": 3})
    assert found.plain
    assert found.present == frozenset()
    assert found.source.tolist() == [0, 3]
    assert math.isnan(found.scores[0, 0])
    assert found.scores_disagree == 1


@pytest.mark.parametrize("change", [{"weight": 2.0}, {"margin": 0.0}, {"preference_probability": 1.0}])
def test_what_reaches_a_batch_is_in_the_fingerprint(change: dict[str, Any]) -> None:
    assert not values({}, change).plain
    assert values({}, change).fingerprint != values({}, {}).fingerprint
    assert values({}, change).fingerprint != values(change, {}).fingerprint
    assert values(change, {"scores": (1.0, 2.0)}).fingerprint == values(change, {}).fingerprint


def test_numbers_reach_the_batch() -> None:
    changes = [{"weight": 2.0, "margin": 0.5}, {}]
    pairs = PairDataset(PairStore.of([IDS, IDS]), values(*changes))
    batch = Collate(0)(pairs[[(0, 1.0), (1, 0.0)]])
    assert batch.weight.tolist() == [2.0, 0.0]
    assert batch.margin is not None
    assert batch.margin.tolist() == [0.5, 0.0]
    assert batch.preference_probability is None
    assert batch.to("cpu").margin is not None
    assert [pairs.pair(index).weight for index in (0, 1)] == [2.0, 1.0]


def test_a_row_without_a_probability_is_sure() -> None:
    pairs = PairDataset(PairStore.of([IDS, IDS]), values({"preference_probability": 0.7}, {}))
    batch = Collate(0)(pairs[[(0, 1.0), (1, 1.0)]])
    assert batch.preference_probability is not None
    assert torch.allclose(batch.preference_probability, torch.tensor([0.7, 1.0]))
    assert batch.chosen_side().preference_probability is not None


def test_no_pairs() -> None:
    assert PairValues.of([]).scores.shape == (0, 2)
