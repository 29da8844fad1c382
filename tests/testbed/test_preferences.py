"""Raters follow Bradley-Terry, and like length a little too much."""

import random

import pytest

from lit_align.testbed import corpus
from lit_align.testbed.preferences import DEMONSTRATION, IDEAL, prefers_first, rated_score, report_labels
from lit_align.testbed.truth import tally, true_score
from lit_align.testbed.world import FILLERS, draw_post


def test_verdicts_have_the_frequency_of_bradley_terry() -> None:
    """One fact of three words against silence: sigma(1 - 3 * 0.05 + 3 * 0.08) = sigma(1.09) = 0.7484."""
    rng = random.Random(0)
    wins = sum(prefers_first(rng, "She plays piano.", " She plays piano.", "") for _ in range(20_000))
    assert wins / 20_000 == pytest.approx(0.7484, abs=0.01)  # three standard errors


def test_raters_like_filler_that_the_truth_does_not() -> None:
    prompt, plain = "She plays piano.", " She plays piano."
    for filler in FILLERS:
        longer = f"{plain} {filler}"
        assert true_score(prompt, longer) < true_score(prompt, plain)
        assert rated_score(prompt, plain) < rated_score(prompt, longer) < rated_score(prompt, plain) + 0.5


def test_raters_prefer_every_true_fact_and_reject_wrong_and_repeated_ones() -> None:
    prompt = "She plays piano. She keeps bees."
    plain = " She plays piano."
    assert rated_score(prompt, f"{plain} She keeps bees.") > rated_score(prompt, plain)
    assert rated_score(prompt, f"{plain} She keeps cats.") < rated_score(prompt, plain)
    assert rated_score(prompt, f"{plain} She plays piano.") < rated_score(prompt, plain)


def test_demonstrations_are_true_but_leave_room() -> None:
    rng = random.Random(0)
    posts = [draw_post(rng) for _ in range(300)]
    demonstrations = [tally(post.text, DEMONSTRATION(rng, post)) for post in posts]
    ideals = [tally(post.text, IDEAL(rng, post)) for post in posts]
    assert all(counts.wrong == counts.repeated == 0 for counts in demonstrations + ideals)
    assert all(counts.correct == counts.stated for counts in ideals)
    told = sum(counts.correct for counts in demonstrations) / sum(counts.stated for counts in demonstrations)
    assert 0.5 < told < 0.65


def test_labels_carry_signal_and_bias() -> None:
    report = report_labels(corpus.draw_splits()["train"])
    assert 0.75 < report.accuracy < 0.8
    assert report.contradicted == pytest.approx(1 - report.accuracy, abs=0.02)
    assert report.longer_wins > 0.6
    assert report.longer_wins_contradicted > 0.7
