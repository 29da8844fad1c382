"""The commands of the guide run, its scores are accepted, and its tables have every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lit_align import online
from lit_align.metrics import reward, rollouts
from lit_align.models.scorer import Scorer
from tests.runner import QUIET, lit_align, metrics, ok
from tests.test_readme import our_commands

from .reading import blocks, files, guide, rows

GUIDE = guide("on_policy")
ONLINE, REWARD = our_commands(GUIDE)
SCORES = [block.text for block in blocks(GUIDE) if block.language == "yaml"]
SHORT = (
    *("--trainer.max_steps", 2, "--trainer.limit_val_batches", 1, "--trainer.log_every_n_steps", 1),
    *("--trainer.val_check_interval", 1, "--samples.count", 0, "--export.form", "none", *QUIET),
)
SMALL = (*("--data.batch_size", 2, "--model.responses", 2, "--model.sampling.max_new_tokens", 8), *SHORT)


def named(heading: str) -> set[str]:
    """The metrics of the table below a heading."""
    table = rows(GUIDE.split(f"\n## {heading}\n")[1], "metric")
    return {name for row in table for name in re.findall(r"`([\w/]+)`", row[0])}


def reported(run: Path) -> set[str]:
    names = {name.partition("/") for line in metrics(run) for name in line}
    return {name for stage, _, name in names if stage in ("train", "val")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the function of the guide, and the reward model of its command."""
    place = tmp_path_factory.mktemp("user")
    (place / "parts").mkdir()
    for name, text in files(GUIDE).items():
        (place / "parts" / name).write_text(text, "utf-8")
    ok(lit_align(*REWARD, *SHORT, "--export.form", "merged", folder=place))
    return place


@pytest.mark.long
def test_the_reward_model_reports_what_the_table_says(folder: Path) -> None:
    steps = {"grad_norm", "learning_rate", "tokens_seen"}
    assert named("What a reward model reports") == reported(folder / "runs" / "reward") - steps
    assert {*reward.REWARD_METRICS} <= named("What a reward model reports")


def test_the_on_policy_run_reports_what_the_table_says(folder: Path) -> None:
    ok(lit_align(*ONLINE, *SMALL, folder=folder))
    documented = named("What an on-policy run reports")
    in_run = reported(folder / "runs" / "online") - {"grad_norm", "learning_rate", "tokens_seen"}
    # of runs with a value model, and of those on pairs
    assert documented - in_run == {"loss/value", "values/explained", "paired"}
    assert in_run < documented
    assert {*rollouts.ROLLOUT_METRICS} - {*rollouts.HIDDEN} <= documented


@pytest.mark.long
@pytest.mark.parametrize("score", SCORES, ids=lambda text: re.search(r"class_path: (\w+)", text)[1])
def test_the_score_is_taken(folder: Path, score: str) -> None:
    (folder / "score.yaml").write_text(score, "utf-8")
    start, end = ONLINE.index("--model.score"), ONLINE.index("--model.sampling.max_new_tokens")
    words = (*ONLINE[:start], *ONLINE[end:], "--config", "score.yaml", "--extend", "parts")
    run = folder / "runs" / "scored"
    ok(lit_align(*words, *SMALL, "--run", run, folder=folder))
    assert any("train/score" in line for line in metrics(run))
    assert (run / "config.yaml").read_text().count(re.search(r"class_path: (\w+)", score)[1]) >= 1


def test_every_choice_is_named() -> None:
    """Presets, advantages, surrogates, weightings, scores and pairings that there are."""
    documented = set(re.findall(r"`(\w+)`", GUIDE.split("| key | meaning | choices |")[1].split("\n\n")[0]))
    leaves = {
        part.__name__
        for kind in (online.Advantage, online.Surrogate, online.TokenWeighting, online.LengthControl, Scorer)
        for part in kind.__subclasses__()
        if part.__module__.startswith("lit_align.")
    }
    pairings = {part.__name__ for part in online.ResponsePairing.__subclasses__()}
    assert pairings <= set(re.findall(r"`(\w+)`", GUIDE))
    assert leaves | {"kl_rlhf", "pm_rlhf", "conditional_pm_rlhf"} <= documented


@pytest.mark.parametrize("key", ["gradient_clip_val", "accumulate_grad_batches", "tokens_at_once", "compile"])
def test_what_the_guide_calls_refused_is_refused(folder: Path, key: str) -> None:
    values = {"gradient_clip_val": 1, "accumulate_grad_batches": 2, "tokens_at_once": 100, "compile": "true"}
    (word,) = set(re.findall(rf"`([\w.]+\.{key})`", GUIDE))
    ended = lit_align(*ONLINE, *SMALL, f"--{word}", values[key], folder=folder)
    assert ended.code == 2
    assert word in ended.out
