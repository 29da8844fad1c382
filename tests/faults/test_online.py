"""Faulty pairs, prompts and scores in reward models and on-policy runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_align import testbed
from lit_align.callbacks import AtomicCheckpointIO
from lit_align.models.sampling import Sampling
from lit_align.models.scorer import FunctionScore, ScoreError
from lit_align.modules import LitOnline
from lit_align.online import LeaveOneOut, Reinforce, ResponseSum
from lit_align.online.presets import kl_rlhf
from tests.modules.online.test_module import adam, distance, fit, lit, lit_start
from tests.runner import BASE, SHORT, Ended, lit_align, metrics, ok, weights
from tests.runner import distance as apart

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|across ranks is zero|was called before)")
RLOO = kl_rlhf(0.1, LeaveOneOut(), Reinforce(), ResponseSum())


def reported(module: LitOnline) -> dict[str, float]:
    return {name: float(value) for name, value in module.trainer.callback_metrics.items()}


def of_length(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [float(len(response)) for response in responses]


def constant(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [1.5] * len(responses)


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.fault("H02")
@pytest.mark.parametrize("function", [constant, of_length])
def test_h02_equal_scores_are_ties_and_teach_nothing(rows: Path, tmp_path: Path, function: Any) -> None:
    """The gradient is exactly zero, since Adam turns any noise into a full step; unequal scores move the policy."""
    module = lit(RLOO, score=FunctionScore(function), optimizer=adam, responses=3)
    fit(rows, tmp_path, module, log_every_n_steps=1)
    found = reported(module)
    if function is constant:
        assert found["train/tie_rate"] == 1.0
        assert found["train/score"] == 1.5
        assert found["train/score/std"] == found["train/grad_norm"] == 0.0
        assert distance(module, lit_start()) == 0.0
    else:
        assert found["train/tie_rate"] < 1.0
        assert distance(module, lit_start()) > 0.0


@pytest.mark.fault("H06")
def test_h06_equal_responses_are_counted_and_teach_nothing(rows: Path, tmp_path: Path) -> None:
    """With a tiny top-p both responses are the most likely one; different ones would move the policy."""
    module = lit(RLOO, score=FunctionScore(of_length), optimizer=adam, sampling=Sampling(16, top_p=1e-6))
    fit(rows, tmp_path, module, log_every_n_steps=1)
    found = reported(module)
    assert found["train/distinct"] == 0.5
    assert found["train/tie_rate"] == 1.0
    assert found["train/grad_norm"] == 0.0
    assert distance(module, lit_start()) == 0.0


BAD: dict[str, tuple[str, Any, str]] = {
    "H01": ("nan", lambda count: [float("nan")] * count, "nan for the response"),
    "H03": ("none", lambda count: None, "gave NoneType; expected a list of 8 numbers"),
    "H04": ("too many", lambda count: [1.0] * (count + 1), "9 scores for 8 responses"),
    "H05": ("infinite", lambda count: [float("inf")] * count, "inf for the response"),
}


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.fault(row)) for row in BAD])
def test_h01_h03_h04_h05_a_score_that_is_no_score_stops_the_run_before_the_step(
    rows: Path, tmp_path: Path, row: str
) -> None:
    _, values, said = BAD[row]
    module = lit(RLOO, score=FunctionScore(lambda prompts, responses: values(len(responses))))
    with pytest.raises(ScoreError, match=said):
        fit(rows, tmp_path, module)
    assert distance(module, lit_start()) == 0.0


SCORING = """
import os

calls = []

def score(prompts, responses):
    calls.append(1)
    if len(calls) == int(os.environ.get("FAILS_AT", "0")):
        raise ConnectionError("the scores do not come any more")
    return [len(response) / 10.0 for response in responses]
"""


@pytest.fixture
def scoring(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "scoring.py").write_text(SCORING)
    return folder


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--task", "online", "--run", run, *BASE, *SHORT, "--model.optimizer.lr", "1e-4"),
        *("--model.objective", "kl_rlhf", "--model.objective.advantage", "LeaveOneOut", "--model.responses", 2),
        *("--model.sampling.max_new_tokens", 8, "--data.train", rows, "--data.batch_size", 4),
        *("--trainer.max_steps", 4, "--checkpoints.every_n_steps", 1, *more),
    )


@pytest.mark.fault("H07")
@pytest.mark.resume("on-policy, behind a score that failed in the third rollout")
def test_h07_a_score_that_fails_ends_the_run_and_keeps_what_was_trained(
    rows: Path, tmp_path: Path, scoring: Path
) -> None:
    function = ("--model.score", "FunctionScore", "--model.score.function", "scoring.score", "--extend", scoring)
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended = lit_align(*words(run, rows, *function), FAILS_AT="3")
    assert ended.code != 0
    assert "the scores do not come any more" in ended.out
    last = AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 2
    ok(lit_align(*words(run, rows, *function, "--ckpt_path", "last")))
    ok(lit_align(*words(whole, rows, *function)))
    assert apart(weights(run), weights(whole)) == 0.0
    assert metrics(run) == metrics(whole)


# ── prompts and responses ───────────────────────────────────────────────────────────────────────────────────────────


def refused(ended: Ended, *said: str) -> None:
    assert ended.code == 2, ended.out
    assert "Traceback" not in ended.out
    for part in said:
        assert part in ended.out


KNOWN = ("--model.score", "KnownScore", "--model.score.score", "TestbedScore")


def changed(rows: Path, folder: Path, place: int, **change: object) -> Path:
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    lines[place] |= change
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.fault("H08")
def test_h08_a_prompt_of_no_tokens_is_named(rows: Path, tmp_path: Path) -> None:
    bad = changed(rows, tmp_path, 4, prompt="")
    refused(lit_align(*words(tmp_path / "run", bad, *KNOWN)), "changed.jsonl:5: prompt: found empty; expected text")


@pytest.mark.fault("H09")
def test_h09_responses_of_no_tokens_are_refused(rows: Path, tmp_path: Path) -> None:
    ended = lit_align(*words(tmp_path / "run", rows, *KNOWN, "--model.sampling.max_new_tokens", 0))
    refused(ended, "max_new_tokens is 0; expected 1 or more")


# ── reward models ───────────────────────────────────────────────────────────────────────────────────────────────────


def reward(run: Path, rows: Path, *more: object) -> Ended:
    words = ("fit", "--task", "reward", "--run", run, *BASE, *SHORT, "--data.train", rows)
    return lit_align(*words, "--data.batch_size", 4, "--trainer.max_steps", 2, *more)


@pytest.mark.fault("F03")
def test_f03_rows_that_are_too_long_are_counted(rows: Path, tmp_path: Path) -> None:
    """Cut responses are counted; dropped pairs are accepted up to the limit."""

    def report(run: str) -> Any:
        return json.loads((tmp_path / run / "data.json").read_text("utf-8"))["train"]

    ok(reward(tmp_path / "cut", rows, "--data.max_length", 48))
    lengths = report("cut")["lengths"]
    assert (lengths["chosen_truncated"], lengths["rejected_truncated"]) == (9, 6)
    short = ("--data.max_length", 90, "--data.truncation", "drop")
    refused(reward(tmp_path / "refused", rows, *short), "5 of 11 rows cannot be used: 45.5% is more than max_dropped")
    ok(reward(tmp_path / "dropped", rows, *short, "--data.max_dropped", 0.9))
    assert report("dropped")["dropped"] == {"longer than the limits": 5}
    assert report("dropped")["lengths"]["pairs"] == 6


@pytest.mark.fault("F04")
def test_f04_a_model_of_two_outputs_is_no_reward_model(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    AutoModelForSequenceClassification.from_pretrained(testbed.path("policy"), num_labels=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(testbed.path("policy") / name, folder / name)
    said = ("weights of other shapes", "score.weight")
    refused(reward(tmp_path / "trained", rows, "--model.policy", folder), *said)
    scored = ("--model.score", "RewardModel", "--model.score.path", folder)
    refused(lit_align(*words(tmp_path / "scored", rows, *scored)), *said)


@pytest.mark.fault("F07", "F08")
@pytest.mark.parametrize("margin", [-0.5, "NaN", 1e400])
def test_f07_f08_a_margin_that_is_no_distance_is_named(rows: Path, tmp_path: Path, margin: object) -> None:
    bad = changed(rows, tmp_path, 2, margin=margin)
    refused(reward(tmp_path / "run", bad), "changed.jsonl:3", "margin", "0 or more")


@pytest.mark.fault("F01")
def test_f01_a_pair_of_equal_responses_is_named(rows: Path, tmp_path: Path) -> None:
    bad = changed(rows, tmp_path, 6, chosen=" The same.", rejected=" The same.")
    refused(reward(tmp_path / "run", bad), "changed.jsonl:7")


# ── runs of nothing ─────────────────────────────────────────────────────────────────────────────────────────────────


def preference(run: Path, rows: Path, *more: object) -> Ended:
    return lit_align("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, *more)


@pytest.mark.fault("L10")
@pytest.mark.parametrize("key", ["limit_train_batches", "max_steps", "max_epochs"])
def test_l10_a_run_of_no_steps_is_refused(rows: Path, tmp_path: Path, key: str) -> None:
    refused(preference(tmp_path / "run", rows, f"--trainer.{key}", 0), f"trainer.{key} is 0: nothing would be trained")
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("L10", "L11")
def test_l11_too_few_rows_are_a_smaller_batch_and_no_rows_an_error(rows: Path, tmp_path: Path) -> None:
    """An incomplete batch is never dropped, and no setting drops it."""
    one = tmp_path / "one.jsonl"
    one.write_text(rows.read_text("utf-8").splitlines()[0] + "\n", "utf-8")
    ok(preference(tmp_path / "run", one, "--data.batch_size", 8, "--trainer.max_steps", 2))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    refused(preference(tmp_path / "other", one, "--data.drop_last", "true"), "data.drop_last")
    one.write_text("")
    refused(preference(tmp_path / "none", one), "one.jsonl: no rows")


@pytest.mark.long
@pytest.mark.fault("L01b")
def test_l01b_the_search_for_a_nan_can_be_switched_on(rows: Path, tmp_path: Path) -> None:
    """The search is off by default, and does not change the numbers."""
    assert not torch.is_anomaly_enabled()
    for name, more in (("plain", ()), ("searched", ("--trainer.detect_anomaly", "true"))):
        ok(preference(tmp_path / name, rows, "--trainer.max_steps", 2, *more))
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "searched")
    (config,) = (tmp_path / "plain").glob("config.yaml")
    assert "detect_anomaly: false" in config.read_text("utf-8")
