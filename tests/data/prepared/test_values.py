from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_align.data.batches.collate import Collate
from lit_align.data.batches.dataset import PairDataset
from lit_align.data.prepared.arrow import PairValues
from lit_align.data.prepared.store import PairStore
from lit_align.types import PreferencePair, TokenizedPair, TokenizedResponse

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
