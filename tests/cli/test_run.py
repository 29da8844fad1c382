"""The command line: errors and exit codes, and the files that it writes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_align.cli.configuration import read_extensions
from lit_align.cli.run import SaveConfig
from tests.runner import BASE, SHORT, Ended, lit_align, losses, metrics, ok


def words(run: Path, rows: Path, *more: object, command: str = "fit") -> tuple[object, ...]:
    return (command, "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, *more)


def fit(run: Path, rows: Path, *more: object) -> Ended:
    return lit_align(*words(run, rows, "--trainer.max_steps", 2, *more), folder=run.parent)


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "unknown key": (("--trainer.max_stepz", 3), "did you mean trainer.max_steps?"),
    "wrong type": (("--data.batch_size", "many"), "data.batch_size"),
    "objective of another task": (("--model.objective", "kl_rlhf"), "of task online, and the task is preference"),
    "beta in words": (("--model.objective.beta", "nan"), "beta"),
    "strategy": (("--trainer.strategy", "dpp"), "strategy='dpp'"),
    "devices": (("--trainer.devices", 3.5), "`devices`"),
    "missing data": (("--data.train", "nowhere/pairs.jsonl"), "nowhere/pairs.jsonl"),
    "missing model": (("--model.policy", "./nowhere"), "not found: ./nowhere"),
    "missing extension": (("--extend", "./nowhere"), "--extend ./nowhere"),
    "prompted set by hand": (("--data.prompted", "true"), "data.prompted"),
}


def refused(ended: Ended, message: str) -> None:
    """Assert exit code 2 and a short message with the reason."""
    assert ended.code == 2, ended.out
    assert message in ended.out
    assert "Traceback" not in ended.out
    assert len(ended.out.splitlines()) < 12, ended.out


@pytest.mark.parametrize(("more", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(rows: Path, tmp_path: Path, more: tuple[object, ...], message: str) -> None:
    refused(fit(tmp_path / "run", rows, *more), message)


def test_an_objective_is_required(tmp_path: Path, rows: Path) -> None:
    refused(lit_align("fit", "--run", tmp_path, *BASE, "--data.train", rows), "model.objective")


@pytest.mark.representative
def test_what_is_required_is_told_under_the_name_of_its_option() -> None:
    ended = lit_align("fit")
    refused(ended, "required: model.policy, model.objective\n")
    assert ended.out.startswith("usage: python -m lit_align fit [--config FILE]")
    assert "python -m lit_align fit --help\n" in ended.out


def test_a_misspelt_key_in_a_file(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("data: {batch_syze: 4}\n")
    refused(fit(tmp_path / "run", rows, "--config", tmp_path / "wrong.yaml"), "did you mean data.batch_size?")


@pytest.mark.representative
def test_rows_that_cannot_be_used_name_their_file(rows: Path, tmp_path: Path) -> None:
    """Of two files the message says which, and so which split."""
    (tmp_path / "val.jsonl").write_text('{"question": "x", "better": "y", "worse": "z"}\n')
    ended = fit(tmp_path / "run", rows, "--data.validation", tmp_path / "val.jsonl")
    refused(ended, "val.jsonl:1")
    assert "question" in ended.out


@pytest.mark.parametrize("place", ["run", "above"])
def test_a_file_where_the_run_s_folder_should_be(rows: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    run = tmp_path / "file" if place == "run" else tmp_path / "file" / "run"
    refused(lit_align(*words(run, rows, "--trainer.max_steps", 2)), str(tmp_path / "file"))


def test_constructor_errors_have_a_traceback_for_those_who_want_it(rows: Path, tmp_path: Path) -> None:
    more = ("--trainer.max_steps", 1, "--model.objective.beta", -1)
    ended = lit_align(*words(tmp_path / "run", rows, *more), LIT_ALIGN_DEBUG="1")
    assert ended.code == 1
    assert "Traceback" in ended.out


# ── your own parts ──────────────────────────────────────────────────────────────────────────────────────────────

FOCAL = '''
from dataclasses import dataclass

import torch.nn.functional as F

from lit_align.objectives import Contrast
from lit_align.types import Margin


@dataclass(frozen=True)
class Focal(Contrast):
    """Pairs with a large margin have a vanishing loss."""

    beta: float = 0.1
    kappa: float = 2.0

    def __call__(self, margin: Margin) -> Margin:
        scaled = self.beta * margin
        return -(F.sigmoid(-scaled) ** self.kappa) * F.logsigmoid(scaled)
'''
USES_FOCAL = """
model:
  objective:
    class_path: PreferenceObjective
    init_args:
      averaging: Mean
      contrast: {class_path: my_contrasts.Focal, init_args: {beta: 2.0}}
      refinement: {class_path: SelfRefine, init_args: {strength: 0.3}}
"""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder outside the package with a user's part and a configuration that uses it."""
    folder = tmp_path / "my_parts"
    folder.mkdir()
    (folder / "my_contrasts.py").write_text(FOCAL)
    (folder / "focal.yaml").write_text(USES_FOCAL)
    return folder


def test_a_part_of_the_user_s_own_trains(rows: Path, tmp_path: Path, parts: Path) -> None:
    """At margin 0 the loss is (1/2)² ln 2; batches with the quality prompt are built automatically."""
    run = tmp_path / "run"
    ok(fit(run, rows, "--extend", parts, "--config", parts / "focal.yaml"))
    first, _ = losses(run)
    assert first == pytest.approx(0.25 * 0.693147, rel=1e-4)
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["objective"]["init_args"]
    assert saved["contrast"] == {"class_path": "my_contrasts.Focal", "init_args": {"beta": 2.0, "kappa": 2.0}}


@pytest.mark.security(5)
def test_own_code_is_named_on_the_command_line(rows: Path, tmp_path: Path, parts: Path) -> None:
    """A configuration file alone cannot import user code, neither by a class path nor by the key."""
    refused(fit(tmp_path / "run", rows, "--config", parts / "focal.yaml"), "my_contrasts.Focal")
    (parts / "extend.yaml").write_text(f"extend: {parts}\n")
    refused(fit(tmp_path / "run", rows, "--config", parts / "extend.yaml"), f"--extend {parts}")


def test_extensions_in() -> None:
    assert read_extensions(["fit", "--extend=a,b"]) == ["a", "b"]
    assert read_extensions(["fit", "--extend"]) == read_extensions(["fit"]) == []


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_saved_configuration_is_complete_and_plain(rows: Path, tmp_path: Path) -> None:
    """The saved configuration contains every part with its defaults, as plain YAML without tags."""
    run = tmp_path / "run"
    ok(fit(run, rows, "--model.objective", "{class_path: PreferenceObjective, init_args: {contrast: Square}}"))
    text = (run / "config.yaml").read_text()
    assert "!!" not in text
    saved = yaml.safe_load(text)
    init = saved["model"]["objective"]["init_args"]
    assert set(init) == {"contrast", "averaging", "refinement", "regularizer", "divergence", "requires"}
    assert init["contrast"]["init_args"] == {"beta": 0.1}
    assert init["averaging"]["class_path"].endswith("Sum")
    assert saved["model"]["loading"]["dtype"] == "float32"
    assert saved["model"]["optimizer"]["init_args"]["betas"] == [0.9, 0.999]
    assert saved["data"]["seed"] == saved["seed_everything"] == 0
    assert saved["data"]["tokenizer"] == "testbed:policy"
    assert saved["samples"]["sampling"]["temperature"] == 1.0
    assert saved["checkpoints"] == {"every_n_steps": 500, "keep": 2}
    assert saved["export"] == {"form": "none", "which": "last"}


def test_print_config_parses_again_to_itself(rows: Path, tmp_path: Path) -> None:
    printed = ok(lit_align(*words(tmp_path / "run", rows, "--model.objective", "sr_ipo", "--print_config"))).out
    (tmp_path / "printed.yaml").write_text(printed)
    again = ok(lit_align("fit", "--config", tmp_path / "printed.yaml", "--print_config")).out
    assert yaml.safe_load(printed)["model"]["objective"]["class_path"] == "lit_align.objectives.sr_ipo"
    assert yaml.safe_load(again) == yaml.safe_load(printed)
    assert not (tmp_path / "run").exists()


@pytest.mark.representative
def test_later_files_win_and_the_command_line_wins_over_files(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {batch_size: 2, max_length: 100}\nmodel: {optimizer: {class_path: SGD}}")
    (tmp_path / "b.yaml").write_text("data: {batch_size: 3, max_length: 90}\n")
    more = ("--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml", "--data.max_length", 80)
    printed = yaml.safe_load(ok(fit(tmp_path / "run", rows, *more, "--print_config")).out)
    assert (printed["data"]["batch_size"], printed["data"]["max_length"]) == (3, 80)


def test_help_mentions_the_keys(tmp_path: Path) -> None:
    text = ok(lit_align("fit", "--help")).out
    for key in ("--run", "--model.objective", "--data.train", "--samples.count", "--export.form", "--extend"):
        assert key in text
    assert " averaged_ipo, bco," in text.replace("\n" + " " * 24, " ")


@pytest.mark.parametrize(
    ("more", "rates"),
    [
        pytest.param(("--model.schedule", "Constant"), [1, 1, 1, 1], marks=pytest.mark.long),
        (("--model.schedule", "Linear", "--model.schedule.warmup", 0), [1, 0.75, 0.5, 0.25]),
        pytest.param(
            ("--model.schedule", "{class_path: Cosine, init_args: {warmup: 0}}"),
            [1, 0.853553, 0.5, 0.146447],
            marks=pytest.mark.long,
        ),
        (("--model.optimizer", "torch.optim.RMSprop", "--model.optimizer.lr", 1e-3), [0.5, 1, 0.75, 0.25]),
    ],
    ids=["constant", "linear", "cosine", "RMSprop"],
)
def test_schedules_and_optimizers_go_by_name(
    rows: Path, tmp_path: Path, more: tuple[object, ...], rates: list[float]
) -> None:
    """Without a schedule the default applies: a cosine after one step of warm-up."""
    run = tmp_path / "run"
    ok(fit(run, rows, *more, "--trainer.max_steps", 4))
    reported = [line["train/learning_rate"] for line in metrics(run)]
    assert reported == pytest.approx([1e-3 * rate for rate in rates], rel=1e-4)


# ── what is written, and where ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def fitted(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in an otherwise empty folder, which was the working directory."""
    run = tmp_path_factory.mktemp("cli") / "deep" / "run"
    run.parent.mkdir()
    ok(fit(run, rows, "--samples.count", 1, "--samples.sampling.max_new_tokens", 2, "--export.form", "merged"))
    return run


@pytest.mark.security(13)
def test_nothing_is_written_outside_the_run_s_folder(fitted: Path) -> None:
    assert [path.name for path in fitted.parent.parent.iterdir()] == ["deep"]
    assert [path.name for path in fitted.parent.iterdir()] == ["run"]
    assert {path.name for path in fitted.iterdir()} == {
        *("checkpoints", "config.yaml", "data.json", "environment.json", "metrics.jsonl", "policy", "samples.jsonl"),
        *(path.name for path in fitted.glob("events.out.tfevents.*")),
    }


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_evaluating_a_checkpoint(fitted: Path, rows: Path, tmp_path: Path, command: str, stage: str) -> None:
    """Validation prints and stores the metrics, and does not change the configuration of the fit."""
    split = "validation" if command == "validate" else command
    config = (fitted / "config.yaml").read_text()
    last = fitted / "checkpoints" / "last.ckpt"
    ended = ok(lit_align(*words(tmp_path, rows, f"--data.{split}", rows, "--ckpt_path", last, command=command)))
    reported = metrics(tmp_path)[-1]
    for name in ("loss", "rewards/accuracies", "lengths/gap"):
        value = reported[f"{stage}/{name}"]
        found = re.search(rf"{name} +│ +{value:.4f} +│ +(\S+) to (\S+) +│ +(\d+) ", ended.out)
        assert found, ended.out
        assert float(found[1]) <= value <= float(found[2])
        assert found[3] == "11"
    assert 0 < reported[f"{stage}/loss"] != pytest.approx(0.693147, rel=1e-6)
    assert (fitted / "config.yaml").read_text() == config
    assert not (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize(
    ("more", "warned"),
    [((), 1), (("--ckpt_path", "last"), 0), (("--model.policy", "{run}/policy"), 0)],
    ids=["none is named", "one is named", "the run's own policy"],
)
def test_a_run_s_checkpoints_are_not_passed_over_silently(
    fitted: Path, rows: Path, tmp_path: Path, more: tuple[str, ...], warned: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    named = (word.format(run=run) for word in more)
    ended = ok(lit_align(*words(run, rows, "--data.validation", rows, *named, command="validate")))
    assert len(re.findall("^warning: .*; --ckpt_path last takes the newest$", ended.out, re.MULTILINE)) == warned


FAILS_LATE = """
from lightning.pytorch import Callback


class Fails(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        raise ValueError("no step for you")
"""


@pytest.mark.parametrize(
    "more",
    [
        ("--data.train", "bad.jsonl"),
        pytest.param(("--model.policy", "owner/nowhere"), marks=pytest.mark.long),
        ("--trainer.callbacks+=failing.Fails",),
    ],
    ids=["data", "model", "the first step"],
)
def test_a_fit_that_fails_before_its_first_step_leaves_the_old_run_alone(
    rows: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    ok(fit(run, rows))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "failing.py").write_text(FAILS_LATE)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert fit(run, rows, "--extend", tmp_path / "parts", *more).code == 2
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    ok(lit_align(*words(run, rows, "--data.validation", rows, "--ckpt_path", "last", command="validate")))


def test_a_fast_dev_run_writes_nothing(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(fit(run, rows))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    more = ("--trainer.fast_dev_run", 2, "--data.validation", rows, "--export.form", "merged", "--samples.count", 1)
    ended = ok(fit(run, rows, *more))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert str(run / "metrics.jsonl") not in ended.out
    ok(fit(tmp_path / "new", rows, *more))
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()]


def test_warnings_take_one_clean_line(rows: Path, tmp_path: Path) -> None:
    more = ("--model.loading.dtype", "bfloat16", "--samples.count", 1, "--samples.sampling.max_new_tokens", 2000)
    ended = ok(fit(tmp_path / "run", rows, *more))
    lines = [line for line in ended.out.splitlines() if line.startswith("warning: ")]
    assert any("model.loading.dtype is bfloat16" in line for line in lines)
    assert any(re.search(r"samples end after \d+ tokens and not 2000", line) for line in lines)
    assert not re.search(r"\.py:\d+|rank_zero_warn", ended.out)


PARTS = """
from lightning.pytorch.callbacks import TQDMProgressBar


class MyBar(TQDMProgressBar):
    ...


def rate(prompts, responses):
    raise KeyError("no such thing")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_parts.py").write_text(PARTS)
    return tmp_path / "own"


def test_a_progress_bar_of_the_user_s_replaces_ours(rows: Path, tmp_path: Path, own: Path) -> None:
    more = ("--trainer.enable_progress_bar", "true", "--trainer.callbacks+=own_parts.MyBar")
    ok(fit(tmp_path / "run", rows, "--extend", own, *more))


def test_a_score_function_that_raises_fails_the_run(rows: Path, tmp_path: Path, own: Path) -> None:
    """The exit code is 1, since the command itself is valid."""
    ended = lit_align(
        *("fit", "--task", "online", "--run", tmp_path / "run", *BASE, *SHORT, "--model.objective", "kl_rlhf"),
        *("--data.train", rows, "--model.score", "FunctionScore", "--model.score.function", "own_parts.rate"),
        *("--extend", own, "--model.sampling.max_new_tokens", 2),
    )
    assert ended.code == 1, ended.out
    assert "error: the score function rate raised KeyError: 'no such thing'" in ended.out
    assert "Traceback" not in ended.out


def test_a_folder_with_an_adapter_needs_its_base_and_no_second_adapter(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    words = ("--model.policy", tmp_path / "adapter", "--data.tokenizer", "testbed:policy")
    ended = fit(tmp_path / "run", rows, *words)
    assert ended.code == 2
    assert "an adapter of some/model: its config.json cannot be read" in ended.out
    assert "Traceback" not in ended.out
    refused(fit(tmp_path / "run", rows, *words, "--model.lora.rank", 2), "Leave model.lora out")


def test_a_fresh_fit_keeps_the_old_one_and_a_resumed_one_goes_on(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ok(fit(run, rows))
    first = metrics(run)
    ok(fit(run, rows, "--trainer.max_steps", 3, "--ckpt_path", "last"))
    assert not (run / "previous").exists()
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    assert metrics(run)[:2] == first
    second = metrics(run)
    ok(fit(run, rows))
    assert metrics(run / "previous" / "1") == second
    ok(fit(run, rows))
    assert metrics(run / "previous" / "2") == metrics(run)


def test_the_configuration_is_written_without_leaving_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of a logger that writes meanwhile would not find a folder whose path is relative."""
    settings = {"ckpt_path": "last", "number": 3, "nothing": None}
    trainer: Any = SimpleNamespace(default_root_dir=str(tmp_path / "run"), loggers=[])
    monkeypatch.setattr(os, "chdir", None)
    SaveConfig(LightningArgumentParser(), Namespace(), settings).save_config(trainer, None, "fit")
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert saved == {"ckpt_path": None, "number": 3, "nothing": None}
