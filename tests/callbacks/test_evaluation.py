"""Curves of an evaluation during a run are those of its rows, and callbacks can follow them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_align.callbacks.evaluation import TrainingEvaluation
from lit_align.evaluation.models import load_hugging_face
from lit_align.evaluation.preference_sets import read_pairs
from lit_align.models.loading import Loading
from lit_align.testbed.truth import true_score
from tests.evaluation import by_hand
from tests.runner import BASE, SHORT, distributed, lit_align, metrics, ok, weights

EVALUATION = (
    *("--evaluation.prompts", "testbed:test", "--evaluation.limit", 5, "--evaluation.judge", "testbed"),
    *("--evaluation.sampling.max_new_tokens", 10, "--evaluation.seeds", "[0,1]", "--evaluation.every", 1),
    *("--evaluation.pairs", "testbed:test", "--evaluation.resamples", 20),
)
STOP = (
    '[{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"monitor": "eval/win_rate", '
    '"mode": "max", "every_n_train_steps": 1, "filename": "best"}}]'
)


def words(run: Path, steps: int, *more: object) -> tuple[object, ...]:
    data = ("--data.train", "testbed:train", "--data.limit", 8, "--data.batch_size", 4)
    objective = ("--model.objective", "dpo", "--trainer.max_steps", steps)
    return ("fit", "--run", run, *BASE, *SHORT, *data, *objective, *EVALUATION, *more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    ok(lit_align(*words(folder, 2, "--model.optimizer.lr", "0.01", "--trainer.callbacks", STOP)))
    return folder


def rows(run: Path, step: int) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if line["step"] == step]


def numbers(run: Path, step: int) -> dict[str, float]:
    return {key: value for line in metrics(run) if line["step"] == step for key, value in line.items()}


def test_the_curve_is_that_of_the_rows(run: Path) -> None:
    start = {(row["index"], row["seed"]): row for row in rows(run, 0)}
    for step in (0, 1, 2):
        found, values = rows(run, step), numbers(run, step)
        scores = [true_score(row["prompt"], row["response"]) for row in found]
        assert len(found) == 10
        assert values["eval/score"] == pytest.approx(np.mean(scores))
        assert values["eval/score/low"] <= values["eval/score"] <= values["eval/score/high"]
        assert values["eval/length/tokens"] == np.mean([len(row["ids"]) for row in found])
        if step:
            base = [true_score(row["prompt"], start[row["index"], row["seed"]]["response"]) for row in found]
            wins = [(a > b) + 0.5 * (a == b) for a, b in zip(scores, base, strict=True)]
            assert values["eval/win_rate"] == pytest.approx(np.mean(wins))
            longer = [len(row["response"]) - len(start[row["index"], row["seed"]]["response"]) for row in found]
            controlled = by_hand.win_rate(
                by_hand.length_term(np.array(longer, dtype=float)), np.array(wins, dtype=float)
            )
            assert values["eval/win_rate/length_controlled"] == pytest.approx(controlled, abs=2e-3)
    assert "eval/win_rate" not in numbers(run, 0)
    assert numbers(run, 0)["eval/kl"] == 0


def test_divergence_and_pairs_are_those_of_the_weights(run: Path) -> None:
    """Of the last checkpoint beside the policy at the start, with sums over tokens and vocabulary."""
    loaded = load_hugging_face("testbed:policy", "policy", Loading(dtype="float32"), "cpu")
    start = loaded.model
    trained = copy.deepcopy(start)
    state = {name.removeprefix("policy."): value for name, value in weights(run).items()}
    trained.load_state_dict(state, strict=False)
    divergences = []
    for row in rows(run, 2):
        ours, theirs = (by_hand.log_probs(model, row["prompt_ids"], row["ids"]) for model in (trained, start))
        divergences.append(float((ours.exp() * (ours - theirs)).sum()))
    assert numbers(run, 2)["eval/kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    tokenized = loaded.tokenize(read_pairs("testbed:test", limit=5))
    for step, model in ((0, start), (2, trained)):
        margins = []
        for pair in tokenized:
            chosen, rejected = (by_hand.log_prob(model, pair.prompt, side.ids) for side in pair.sides)
            margins.append(chosen - rejected)
        assert numbers(run, step)["eval/pairs/accuracy/sum"] == np.mean([margin > 0 for margin in margins])


def test_checkpoints_can_follow_the_curve(run: Path) -> None:
    assert any(path.name.startswith("best") for path in run.rglob("*.ckpt"))


@pytest.mark.long
def test_a_resumed_run_compares_with_the_same_start(run: Path, tmp_path: Path) -> None:
    """Two steps, and two more after a resume, give the numbers of four steps at once."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ok(lit_align(*words(whole, 4)))
    schedule = ("--checkpoints.every_n_steps", 2)
    ok(lit_align(*words(parts, 4, *schedule)))
    (kept,) = [path for path in (parts / "checkpoints").iterdir() if "2" in path.stem][:1]
    ok(lit_align(*words(parts, 4, *schedule, "--ckpt_path", kept)))
    keys = ("eval/win_rate", "eval/score", "eval/kl")
    assert [numbers(parts, 4)[key] for key in keys] == [numbers(whole, 4)[key] for key in keys]


@pytest.mark.long
def test_several_processes_evaluate_as_one_does(tmp_path: Path) -> None:
    """With copies of the weights and with shards of them: the same rows, and the same numbers but for rounding."""
    ok(lit_align(*words(tmp_path / "one", 2)))
    ways = {"ddp": (), "fsdp": ("--trainer.strategy", "fsdp")}
    for way, strategy in ways.items():
        for ended in distributed(2, *words(tmp_path / way, 2, "--data.batch_size", 2, *strategy)):
            ok(ended)
        for step in (0, 1, 2):
            texts = [[row["response"] for row in rows(tmp_path / name, step)] for name in ("one", way)]
            assert texts[0] == texts[1], (way, step)
            ours, theirs = (
                {k: v for k, v in numbers(tmp_path / n, step).items() if "eval/" in k} for n in ("one", way)
            )
            assert theirs == pytest.approx(ours, rel=1e-4, abs=1e-5), (way, step)
    assert numbers(tmp_path / "one", 2)["eval/kl"] > 0


@pytest.mark.long
def test_a_judge_that_fails_ends_all_processes(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("def judge(prompts, responses):\n    raise ValueError('no scores today')\n")
    judge = ("--extend", tmp_path, "--evaluation.judge", "scores:failing.judge")
    first, *_ = ended = distributed(2, *words(tmp_path / "run", 2, "--data.batch_size", 2, *judge))
    assert all(one.code for one in ended)
    assert "no scores today" in first.out


def test_a_metric_that_will_not_exist_is_refused(tmp_path: Path) -> None:
    evaluation = TrainingEvaluation(prompts="testbed:test")
    assert evaluation.reports("eval/length/tokens/p90")
    assert not evaluation.reports("eval/win_rate")
    assert not evaluation.reports("val/length/tokens")
    assert TrainingEvaluation(tasks="arc_easy").reports("eval/benchmark/arc_easy/acc")
    assert not TrainingEvaluation().is_on


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "testbed"}, "judge has no effect without evaluation.prompts"),
        ({"by": "subset"}, "by has no effect without evaluation.pairs"),
        ({"every": 0}, "evaluation.every is 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingEvaluation(**settings)
