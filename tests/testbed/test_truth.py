"""The true score, compared with numbers by hand."""

import math

import pytest

from lit_align.testbed.truth import TestbedScore, true_score
from lit_align.types import ResponseScore

POST = "I met Anna last week. She plays piano. She lives in Oslo. She keeps bees.\n\nTL;DR:"


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("", 0.0),
        (" She plays piano.", 1 - 3 * 0.05),
        (" She lives in Oslo. She keeps bees. She plays piano.", 3 - 10 * 0.05),
        (" She plays piano. She plays piano.", 1 - 0.5 - 6 * 0.05),
        (" She plays violin.", -1 - 3 * 0.05),  # wrong value
        (" She drinks tea.", -1 - 3 * 0.05),  # the post says nothing of drinks
        (" She drinks tea. She drinks tea.", -1 - 0.5 - 6 * 0.05),
        (" She plays piano. She plays violin.", 1 - 1 - 6 * 0.05),
        (" She plays", -2 * 0.05),
        (" She plays piano. That is really all there is to say.", 1 - 11 * 0.05),
        (" Piano, Oslo and bees.", -4 * 0.05),
    ],
)
def test_by_hand(response: str, score: float) -> None:
    assert true_score(POST, response) == pytest.approx(score)


@pytest.mark.parametrize("text", ["\x00", "�" * 50, "." * 1000, "She plays", "<|eos|>", "She plays .", "\n\n\n"])
def test_any_text_has_a_finite_score(text: str) -> None:
    assert math.isfinite(true_score(POST, text))
    assert math.isfinite(true_score(text, POST))


def test_a_prompt_in_front_changes_nothing() -> None:
    assert true_score("Answer well: " + POST, " She keeps bees.") == true_score(POST, " She keeps bees.")


def test_is_the_true_score() -> None:
    score: ResponseScore = TestbedScore()
    prompts, responses = ["She plays piano."] * 2, [" She plays piano.", " Hm."]
    assert score(prompts, responses) == [true_score(*both) for both in zip(prompts, responses, strict=True)]


def test_unequal_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TestbedScore()(["a", "b"], ["c"])
