"""Monitored metrics that a run will not report are refused before the first step; the best checkpoint is exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_align.metrics.rollouts import REPORTED_METRICS
from tests.runner import BASE, QUIET, SHORT, Ended, lit_align, metrics, ok

STOPS = "--trainer.callbacks+=EarlyStopping"
KEEPS = "--trainer.callbacks+=ModelCheckpoint"


def fit(run: Path, rows: Path, *more: object) -> Ended:
    words = ("fit", "--run", run, *BASE, *SHORT[:2], *QUIET, "--data.train", rows, "--data.batch_size", 2)
    return lit_align(*words, "--trainer.max_steps", 3, *more)


def preference(run: Path, rows: Path, *more: object) -> Ended:
    return fit(run, rows, "--model.objective", "dpo", *more)


@pytest.mark.parametrize("callback", [STOPS, KEEPS])
def test_a_metric_that_will_not_exist_is_refused(rows: Path, tmp_path: Path, callback: str) -> None:
    more = ("--data.validation", rows, callback, "--trainer.callbacks.monitor", "val_loss")
    ended = preference(tmp_path / "run", rows, *more)
    assert ended.code == 2, ended.out
    assert "follows 'val_loss', which this run will not report; did you mean val/loss" in ended.out
    assert "val/rewards/accuracies" in ended.out
    assert not metrics(tmp_path / "run")


def test_a_metric_of_validation_without_validation_is_refused(rows: Path, tmp_path: Path) -> None:
    ended = preference(tmp_path / "run", rows, STOPS, "--trainer.callbacks.monitor", "val/loss")
    assert ended.code == 2, ended.out
    assert "EarlyStopping follows 'val/loss', and there is no validation: set data.validation" in ended.out


TASKS = {
    "preference": ("--model.objective", "dpo"),
    "reward": ("--task", "reward"),
    "online": (
        *("--task", "online", "--model.objective", "kl_rlhf", "--model.score", "KnownScore"),
        *("--model.score.score", "TestbedScore", "--model.sampling.max_new_tokens", 4, "--model.responses", 2),
    ),
}


@pytest.mark.parametrize(
    "task", ["preference", *(pytest.param(task, marks=pytest.mark.long) for task in ("reward", "online"))]
)
def test_what_is_reported_may_be_followed(rows: Path, tmp_path: Path, task: str) -> None:
    """Validation runs after the last step, even in the middle of an epoch."""
    run = tmp_path / "run"
    more = (*TASKS[task], "--data.validation", rows, "--export.form", "none")
    ok(fit(run, rows, *more, STOPS, "--trainer.callbacks.monitor", "val/loss" if task != "online" else "val/score"))
    lines = metrics(run)
    assert [line["step"] for line in lines if any(name.startswith("val/") for name in line)] == [3]
    reported = {name for line in lines for name in line if name.startswith(("val/", "train/"))}
    refused = lit_align(
        *("fit", "--run", run, *BASE, *SHORT, "--data.train", rows, *more, STOPS),
        *("--trainer.callbacks.monitor", "val/nothing"),
    )
    listed = set(refused.out.partition("It reports ")[2].replace("\n", " ").replace(",", " ").split())
    assert reported <= listed
    assert set(REPORTED_METRICS) or task != "online"


def test_the_best_checkpoint_is_exported(rows: Path, tmp_path: Path) -> None:
    """The best of three checkpoints is the first, so the export has the weights of that step."""
    run = tmp_path / "run"
    keeps = (KEEPS, "--trainer.callbacks.monitor", "train/learning_rate", "--trainer.callbacks.mode", "max")
    often = ("--trainer.callbacks.every_n_train_steps", 1, "--trainer.callbacks.filename", "best-{step}")
    ended = ok(preference(run, rows, *keeps, *often, "--export.which", "best"))
    (best,) = run.rglob("best-*.ckpt")
    state = torch.load(best, weights_only=True)
    assert state["global_step"] < 3, ended.out
    exported = load_file(run / "policy" / "model.safetensors")
    saved = {name.removeprefix("policy."): value for name, value in state["state_dict"].items()}
    assert all(torch.equal(value, saved[name]) for name, value in exported.items())
    assert "weights: the best by train/learning_rate = " in (run / "policy" / "README.md").read_text("utf-8")


def test_the_best_of_nothing_is_refused(rows: Path, tmp_path: Path) -> None:
    ended = preference(tmp_path / "run", rows, "--export.which", "best")
    assert ended.code == 2, ended.out
    assert "add a ModelCheckpoint with a monitor to trainer.callbacks" in ended.out
