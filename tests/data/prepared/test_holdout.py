from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lit_align.data.prepared.read_split import Holdout
from tests.data.examples import turns


@pytest.mark.parametrize("size", [0, -1, 1.0, 1.5, 0.0, -0.1, float("nan"), True])
def test_a_size_out_of_its_range(size: Any) -> None:
    with pytest.raises(ValueError, match=r"data\.holdout is .*; expected a share above 0 and below 1, or a number"):
        Holdout(size)


def test_a_share_is_about_the_share_of_the_prompts() -> None:
    holdout = Holdout(0.2)
    assert holdout.below is not None
    held = sum(holdout.hash(f"prompt {number}") < holdout.below for number in range(5000))
    assert 900 < held < 1100


def test_a_number_takes_whole_prompts_until_there_are_enough() -> None:
    holdout = Holdout(3)
    hashes = np.array([holdout.hash(prompt) for prompt in "aabbccdd"], dtype=np.uint64)
    held = hashes < holdout.threshold(hashes)
    assert held.sum() == 4
    assert (held[::2] == held[1::2]).all()


def test_a_number_that_leaves_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="data.holdout 2 would hold out all of 2 pairs"):
        Holdout(2).threshold(np.array([1, 2], dtype=np.uint64))


def test_seed_and_prompt_decide_alone() -> None:
    assert Holdout(0.5, 0).hash("a") == Holdout(0.1, 0).hash("a")
    assert Holdout(0.5, 0).hash("a") != Holdout(0.5, 1).hash("a")
    asked = tuple(turns("a"))
    reordered = tuple({"content": m["content"], "role": m["role"]} for m in asked)
    assert Holdout(0.5).hash(asked) == Holdout(0.5).hash(reordered)
    assert Holdout(0.5).hash("\ud800") >= 0
