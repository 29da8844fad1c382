"""Reward models and on-policy runs from the command line: resume, processes, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lit_align.cli.configuration import read_task
from lit_align.models import Loading
from lit_align.models.score_model import load_score_model
from tests.runner import QUIET, SHORT, distance, distributed, lit_align, metrics, ok, weights

LOGGED = ("--trainer.log_every_n_steps", "1", "--model.optimizer.lr", "1e-3", "--model.policy", "testbed:policy")
REWARD = ("--task", "reward", *LOGGED)
SCORE = ("--model.score", "KnownScore", "--model.score.score", "TestbedScore")
ONLINE = ("--task", "online", *LOGGED, *SCORE, "--model.sampling.max_new_tokens", "8")
RLOO = (
    *("--model.objective", "conditional_pm_rlhf", "--model.objective.advantage", "LeaveOneOut"),
    *("--model.objective.weighting", "ResponseSum", "--model.responses", "2"),
)
PPO = (
    *("--model.objective", "kl_rlhf", "--model.epochs", "2", "--model.minibatches", "2"),
    *("--model.value.learning_rate", "1e-3"),
)


def data(rows: Path, batch_size: int = 4) -> tuple[object, ...]:
    return ("--data.train", rows, "--data.validation", rows, "--data.batch_size", batch_size)


# ── reward ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.representative
def test_a_reward_model_is_a_hugging_face_folder_with_everything(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "rm"
    ended = ok(lit_align("fit", *REWARD, *data(rows), "--run", run, "--samples.count", 0, *QUIET))
    assert "validation reward accuracy" in ended.out
    model = AutoModelForSequenceClassification.from_pretrained(run / "reward_model")
    tokenizer = AutoTokenizer.from_pretrained(run / "reward_model")
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    ours = load_score_model(str(run / "reward_model"), Loading())
    state = weights(run)
    assert torch.equal(state["model.model.score.weight"], ours.model.score.weight)
    card = (run / "reward_model" / "README.md").read_text("utf-8")
    assert "arXiv:2203.02155" in card
    assert "read at the last token of the response" in card
    assert (run / "figures" / "reliability.png").is_file()
    last = metrics(run)[-1]
    assert {"val/calibration/ece", "val/calibration/brier", "val/lengths/score_correlation"} <= last.keys()


KEPT = ("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1)


@pytest.mark.resume("a reward model")
def test_a_resumed_reward_model_is_the_one_that_was_never_stopped(rows: Path, tmp_path: Path) -> None:
    base = (*REWARD, *data(rows), *SHORT, *KEPT, "--trainer.max_epochs", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ok(lit_align("fit", *base, "--run", whole))
    ok(lit_align("fit", *base, "--run", parts, "--ckpt_path", whole / "checkpoints" / "step=2.ckpt"))
    assert distance(weights(parts), weights(whole)) == 0
    assert metrics(parts) == [line for line in metrics(whole) if line["step"] > 2]


@pytest.mark.partition("a reward model in one process or two")
def test_two_processes_train_the_same_reward_model(rows: Path, tmp_path: Path) -> None:
    base = (*REWARD, *SHORT, "--data.train", rows)
    ok(lit_align("fit", *base, "--data.batch_size", 4, "--run", tmp_path / "one"))
    for ended in distributed(2, "fit", *base, "--data.batch_size", 2, "--run", tmp_path / "two"):
        ok(ended)
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 5e-5


def test_predictions_of_a_reward_model(rows: Path, tmp_path: Path) -> None:
    ok(lit_align("predict", *REWARD, "--data.predict", rows, "--run", tmp_path, *QUIET))
    records = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [record["index"] for record in records] == list(range(11))
    for record in records:
        assert record["score_margin"] == pytest.approx(record["scores"]["chosen"] - record["scores"]["rejected"])


# ── online ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.representative
def test_an_online_run_writes_everything(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "rl"
    sampling = ("--samples.count", 2, "--samples.sampling.max_new_tokens", 8, "--samples.score", "TestbedScore")
    ended = ok(lit_align("fit", *ONLINE, *RLOO, *data(rows), "--run", run, *sampling, *QUIET))
    for text in ("validation score", "matching divergence", "KnownScore(score=TestbedScore())", "mean score"):
        assert text in ended.out
    AutoModelForCausalLM.from_pretrained(run / "policy")
    assert (run / "figures" / "matching.png").is_file()
    assert "scored by" in (run / "policy" / "README.md").read_text("utf-8")
    assert "policy_score" in json.loads((run / "samples.jsonl").read_text().splitlines()[0])
    names = {name for line in metrics(run) for name in line}
    wanted = ("score", "kl", "entropy", "length", "eos_rate", "tie_rate", "distinct", "matching/d1", "matching/d2")
    assert {f"{stage}/{name}" for stage in ("train", "val") for name in wanted} <= names
    assert {"val/matching/given/d2", "train/grad_norm", "train/update/clipped"} <= names
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["task"] == "online"
    ok(lit_align("fit", "--config", run / "config.yaml", "--run", tmp_path / "again"))
    assert distance(weights(run), weights(tmp_path / "again")) == 0


@pytest.mark.parametrize("kind", [pytest.param(RLOO, id="RLOO", marks=pytest.mark.long), pytest.param(PPO, id="PPO")])
@pytest.mark.resume("on-policy runs, with and without a value model")
def test_a_resumed_run_is_the_one_that_was_never_stopped(kind: tuple[str, ...], rows: Path, tmp_path: Path) -> None:
    """Of two epochs with three rollouts each, resume after the second rollout, while sums are incomplete."""
    base = (*ONLINE, *kind, *data(rows), *SHORT, *KEPT, "--trainer.max_epochs", 2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = 4 if kind is PPO else 1
    many = ("--trainer.log_every_n_steps", 2 * steps + steps // 2)
    ok(lit_align("fit", *base, *many, "--run", whole))
    saved = whole / "checkpoints" / f"step={2 * steps}.ckpt"
    ok(lit_align("fit", *base, *many, "--run", parts, "--ckpt_path", saved))
    assert distance(weights(parts), weights(whole)) == 0
    after = [line for line in metrics(whole) if line["step"] > 2 * steps]
    assert metrics(parts) == after
    assert any("train/score" in line for line in after)


@pytest.mark.partition("on-policy runs in one process or two: samples, metrics, weights")
@pytest.mark.parametrize("kind", [pytest.param(RLOO, id="RLOO", marks=pytest.mark.long), pytest.param(PPO, id="PPO")])
def test_two_processes_train_the_same_policy(kind: tuple[str, ...], rows: Path, tmp_path: Path) -> None:
    """Of eleven prompts in two processes the last rollout has three, one of them in the second process."""
    base = (*ONLINE, *kind, *SHORT, "--data.train", rows, "--data.validation", rows)
    ok(lit_align("fit", *base, "--data.batch_size", 4, "--run", tmp_path / "one"))
    for ended in distributed(2, "fit", *base, "--data.batch_size", 2, "--run", tmp_path / "two"):
        ok(ended)
    assert distance(weights(tmp_path / "one"), weights(tmp_path / "two")) < 2e-4
    one, two = ([line for line in metrics(tmp_path / name)] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        for name in ("train/score", "train/length", "train/distinct", "val/score"):
            if name in a:
                assert a[name] == pytest.approx(b[name], abs=1e-4), name


def test_responses_of_a_policy_as_predictions(rows: Path, tmp_path: Path) -> None:
    words = (*ONLINE, *RLOO, "--data.predict", rows, "--run", tmp_path, *QUIET)
    ok(lit_align("predict", *words))
    first = (tmp_path / "predictions.jsonl").read_text()
    records = [json.loads(line) for line in first.splitlines()]
    assert [record["index"] for record in records] == list(range(11))
    assert all(len(record["responses"]) == 2 for record in records)
    assert {"response", "score", "log_prob", "length", "ended"} == records[0]["responses"][0].keys()
    ok(lit_align("predict", *words, "--data.batch_size", 3))
    assert (
        json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[5])["responses"][1]["response"]
        == (records[5]["responses"][1]["response"])
    )


def test_prompts_alone_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"She plays piano. Question {n}?"}) for n in range(4)), "utf-8")
    source = json.dumps([{"path": str(path), "format": "prompts"}])
    ok(lit_align("fit", *ONLINE, *RLOO, *SHORT, "--data.train", source, "--run", tmp_path / "run"))
    ended = lit_align(
        "fit", "--model.objective", "dpo", *LOGGED, *SHORT, "--data.train", source, "--run", tmp_path / "x"
    )
    assert ended.code == 2
    assert "prompts alone" in ended.out


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_score_function_of_ones_own(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "my_scores.py").write_text(
        "def words(prompts, responses):\n    return [float(len(text.split())) for text in responses]\n\n"
        "def broken(prompts, responses):\n    return [float('nan') for _ in responses]\n",
        "utf-8",
    )
    words = ("--task", "online", *LOGGED, *RLOO, "--model.sampling.max_new_tokens", "8", "--data.train", rows, *SHORT)
    own = ("--model.score", "FunctionScore", "--model.score.function")
    ended = lit_align("fit", *words, *own, "my_scores.words", "--run", tmp_path / "not")
    assert ended.code == 2, "code that was not named on the command line was imported"
    ok(lit_align("fit", *words, *own, "my_scores.words", "--extend", folder, "--run", tmp_path / "words"))
    ended = lit_align("fit", *words, *own, "my_scores.broken", "--extend", folder, "--run", tmp_path / "broken")
    assert ended.code == 1
    assert "FunctionScore gave nan for the response" in ended.out
    assert "to the prompt '" in ended.out
    assert "Traceback" not in ended.out


@pytest.mark.representative
def test_a_task_that_there_is_not() -> None:
    ended = lit_align("fit", "--task", "rlhf")
    assert ended.code == 2
    assert "task is 'rlhf'; expected one of preference, reward, online" in ended.out


def test_help_lists_the_keys_of_the_task() -> None:
    shown = {task: lit_align("fit", "--task", task, "--help").out for task in ("preference", "reward", "online")}
    assert "--model.generator" in shown["online"]
    assert "--model.generator" not in shown["preference"]
    assert "--model.lora" in shown["preference"]
    assert "--model.objective.centring" in shown["reward"]


@pytest.mark.parametrize("words", [["--task", "online"], ["--task=online"], ["--config", "FILE"], ["--config=FILE"]])
def test_the_task_is_found(words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("task: online\n", "utf-8")
    assert read_task(["fit", *(word.replace("FILE", str(file)) for word in words)]) == "online"
    assert read_task(["fit", "--config", str(file), "--task", "reward"]) == "reward"


def test_the_trainers_own_clipping_is_refused_with_a_reason(rows: Path, tmp_path: Path) -> None:
    words = (*ONLINE, *RLOO, *SHORT, "--data.train", rows, "--run", tmp_path, "--trainer.gradient_clip_val", 1.0)
    ended = lit_align("fit", *words)
    assert ended.code == 2
    assert "model.gradient_clip" in ended.out
    words = (*ONLINE, *RLOO, *SHORT, "--data.train", rows, "--run", tmp_path, "--trainer.accumulate_grad_batches", 2)
    assert "model.micro_batch" in lit_align("fit", *words).out
