"""The true score as a part."""

import pytest

from lit_align.testbed.score import TestbedScore
from lit_align.testbed.truth import true_score
from lit_align.types import ResponseScore


def test_is_the_true_score() -> None:
    score: ResponseScore = TestbedScore()
    prompts, responses = ["She plays piano."] * 2, [" She plays piano.", " Hm."]
    assert score(prompts, responses) == [true_score(*both) for both in zip(prompts, responses, strict=True)]


def test_unequal_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TestbedScore()(["a", "b"], ["c"])
