"""The task with enumerable preferences: habits and tastes follow their formulas and disagree."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from lit_align.testbed.tastes import (
    FACTS,
    NONSENSE,
    TASTE,
    TasteScore,
    choices,
    habit,
    sample_habits,
    sample_tastes,
    taste_score,
)
from lit_align.testbed.world import KINDS, parse

POST = "I met Anna. She lives in Oslo. She fears bats. She studies law.\n\nTL;DR:"


def test_every_kind_has_a_taste_and_all_differ() -> None:
    assert set(TASTE) == set(KINDS)
    assert len(set(TASTE.values())) == len(KINDS)
    assert (min(TASTE.values()), max(TASTE.values())) == (0.0, 2.0)


def test_anything_but_one_stated_fact_is_nonsense() -> None:
    assert [taste_score(POST, choice) for choice in choices(POST)] == [TASTE["lives in"], 2.0, 0.0]
    for text in ("", " She fears rats.", " She fears bats. She studies law.", "She fears bats.", " He fears bats."):
        assert taste_score(POST, text) == NONSENSE
    assert TasteScore()([POST, POST], [" She fears bats.", "?"]) == [2.0, NONSENSE]


def test_habits_are_a_distribution_by_the_order_of_kinds() -> None:
    shares = habit(POST)
    assert sum(shares) == pytest.approx(1)
    assert math.log(shares[0] / shares[2]) == pytest.approx(0.2 * list(KINDS).index("studies"))


def test_demonstrations_follow_the_habit() -> None:
    """Compare the share of demonstrations with the most habitual fact to the mean of its probability."""
    rows = sample_habits(3000, seed=1)
    wanted = sum(max(habit(row["prompt"])) for row in rows) / len(rows)
    most = [choices(row["prompt"])[max(range(FACTS), key=habit(row["prompt"]).__getitem__)] for row in rows]
    found = sum(row["chosen"] == each for row, each in zip(rows, most, strict=True)) / len(rows)
    assert found == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / len(rows)))


def test_raters_follow_bradley_terry() -> None:
    rows = sample_tastes(4000, seed=2)
    right, chances = 0.0, 0.0
    for row in rows:
        gap = taste_score(row["prompt"], row["chosen"]) - taste_score(row["prompt"], row["rejected"])
        right += (gap > 0) + 0.5 * (gap == 0)
        chances += 1 / (1 + math.exp(-abs(gap)))
    assert right / len(rows) == pytest.approx(chances / len(rows), abs=0.03)


def test_every_post_has_as_many_facts_and_no_pair_is_twice_the_same() -> None:
    rows = sample_tastes(300, seed=3)
    assert Counter(len(parse(row["prompt"])) for row in rows) == {FACTS: 300}
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert sample_tastes(5, seed=3) == rows[:5]
