"""Raters follow Bradley-Terry and have a small bias to length."""

import random
from pathlib import Path

import pytest

from lit_align import testbed
from lit_align.testbed import preferences
from lit_align.testbed.preferences import DEMONSTRATION, IDEAL, Row, prefers_first, rated_score, report_labels
from lit_align.testbed.truth import count_facts, true_score
from lit_align.testbed.world import COMPLETE, FILLERS, WorldSettings, parse, sample_post


def test_verdicts_have_the_frequency_of_bradley_terry() -> None:
    """One fact of three words against silence: sigma(1 - 3 * 0.05 + 3 * 0.08) = sigma(1.09) = 0.7484."""
    rng = random.Random(0)
    wins = sum(prefers_first(rng, "She plays piano.", " She plays piano.", "") for _ in range(20_000))
    assert wins / 20_000 == pytest.approx(0.7484, abs=0.01)  # three standard errors


def test_label_noise_reverses_verdicts() -> None:
    """Of a rater that is right with probability 0.7484, a fifth is reversed: 0.8 * 0.7484 + 0.2 * 0.2516."""
    rng, noisy = random.Random(0), WorldSettings(label_noise=0.2)
    wins = sum(prefers_first(rng, "She plays piano.", " She plays piano.", "", noisy) for _ in range(20_000))
    assert wins / 20_000 == pytest.approx(0.6490, abs=0.01)


def test_length_bonus_makes_labels_follow_length() -> None:
    rng = random.Random(0)
    posts = [sample_post(rng) for _ in range(400)]
    none, usual, large = (
        report_labels([preferences.sample_pair(random.Random(row), post, settings) for row, post in enumerate(posts)])
        for settings in (WorldSettings(length_bonus=0.0), WorldSettings(), WorldSettings(length_bonus=0.3))
    )
    assert none.longer_wins + 0.05 < usual.longer_wins < large.longer_wins - 0.05


def test_votes_are_the_share_of_raters_for_the_chosen_side() -> None:
    rng, settings = random.Random(0), WorldSettings(raters=5)
    rows = [preferences.sample_pair(rng, sample_post(rng), settings) for _ in range(400)]
    assert {row["preference_probability"] for row in rows} == {0.6, 0.8, 1.0}
    sure = [row for row in rows if row["preference_probability"] == 1]
    split = [row for row in rows if row["preference_probability"] == 0.6]
    assert report_labels(sure).accuracy > report_labels(split).accuracy + 0.1


def test_posts_have_as_many_facts_as_are_set() -> None:
    rng = random.Random(0)
    numbers = {len(sample_post(rng, WorldSettings(least_facts=9, most_facts=11)).facts) for _ in range(100)}
    assert numbers == {9, 10, 11}


@pytest.mark.parametrize("knowledge", [0.0, 0.5, 1.0])
def test_share_of_ideal_responses_to_the_quality_prompt(knowledge: float) -> None:
    rng, settings = random.Random(0), WorldSettings(prompt_knowledge=knowledge)
    rows = [preferences.sample_demonstration(rng, sample_post(rng), settings) for _ in range(1000)]
    asked = [row for row in rows if row["prompt"].startswith(COMPLETE)]
    ideal = sum(
        set(parse(row["chosen"])) == set(parse(row["prompt"])) and not any(text in row["chosen"] for text in FILLERS)
        for row in asked
    ) / len(asked)
    assert len(asked) / len(rows) == pytest.approx(0.2, abs=0.03)
    by_chance = 0.06  # a demonstration happens to state all facts and no filler
    assert ideal == pytest.approx(knowledge + (1 - knowledge) * by_chance, abs=0.06)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_noise": 0.6}, "label_noise is 0.6; expected 0 to 0.5"),
        ({"prompt_knowledge": -0.1}, "prompt_knowledge is -0.1; expected 0 to 1"),
        ({"least_facts": 9}, "least_facts is 9 and most_facts 8; expected 1 ≤ least_facts ≤ most_facts ≤ 11"),
        ({"most_facts": 12}, "most_facts 12"),
        ({"raters": 4}, "raters is 4; expected an odd number"),
        ({"length_bonus": float("nan")}, "length_bonus is nan"),
    ],
)
def test_settings_out_of_range_are_errors(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldSettings(**settings)  # type: ignore[arg-type]


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
    posts = [sample_post(rng) for _ in range(300)]
    demonstrations = [count_facts(post.text, DEMONSTRATION(rng, post)) for post in posts]
    ideals = [count_facts(post.text, IDEAL(rng, post)) for post in posts]
    assert all(counts.wrong == counts.repeated == 0 for counts in demonstrations + ideals)
    assert all(counts.correct == counts.stated for counts in ideals)
    told = sum(counts.correct for counts in demonstrations) / sum(counts.stated for counts in demonstrations)
    assert 0.5 < told < 0.65


def test_labels_carry_signal_and_bias(splits: dict[str, list[Row]]) -> None:
    report = report_labels(splits["train"])
    assert 0.75 < report.accuracy < 0.8
    assert report.contradicted == pytest.approx(1 - report.accuracy, abs=0.02)
    assert report.longer_wins > 0.6
    assert report.longer_wins_contradicted > 0.7


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return preferences.sample_splits()


@pytest.mark.parametrize("name", preferences.SIZES)
def test_shipped_files_come_back_bit_for_bit(name: str, splits: dict[str, list[Row]], tmp_path: Path) -> None:
    preferences.write_rows(tmp_path / "rows", splits[name])
    assert (tmp_path / "rows").read_bytes() == testbed.path(f"{name}.jsonl").read_bytes()
    assert preferences.read_rows(tmp_path / "rows") == splits[name]


def test_no_post_is_used_twice(splits: dict[str, list[Row]]) -> None:
    prompts = [row["prompt"] for rows in splits.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == sum(preferences.SIZES.values())
    taught = {row["prompt"] for row in preferences.sample_demonstrations(2000)}
    assert len(taught) == 2000
    assert not taught & set(prompts)


def test_sides_differ_and_join_the_prompt_with_a_space(splits: dict[str, list[Row]]) -> None:
    for row in splits["train"] + preferences.sample_demonstrations(2000):
        assert row["chosen"] != row["rejected"]
        assert row["prompt"] == row["prompt"].strip()
        assert all(row[side].startswith(" ") and row[side][1] != " " for side in ("chosen", "rejected"))


def test_another_seed_gives_other_posts(splits: dict[str, list[Row]]) -> None:
    assert preferences.sample_splits(1)["test"] != splits["test"]
