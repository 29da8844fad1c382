"""The command line accepts every configuration in the repository."""

from __future__ import annotations

from functools import wraps
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lit_align.cli.run import main
from tests.runner import Ended, forked

CONFIGS = Path(__file__).parents[1] / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SIZES = ("llama2_7b_hh", "llama3.2_1b_tldr", "llama3.2_3b_tldr")
"""Folders of experiments that are those of ``opt1.3b_hh`` with another model."""


def layers(path: Path) -> list[Path]:
    """Return the files of a run: a file without policy and objective is merged into the quickstart."""
    model = (yaml.safe_load(path.read_text("utf-8")) or {}).get("model") or {}
    return [path] if {"policy", "objective"} <= model.keys() else [QUICKSTART, path]


def instantiated(*files: Path, run: Path) -> Ended:
    """Run ``fit`` with these files up to the start of training: module, data and trainer are built."""

    def work() -> None:
        stop = wraps(Trainer.fit)(lambda *_, **__: print("ready"))  # the signature says which keys there are
        setattr(Trainer, "fit", stop)  # noqa: B010
        configs = (word for file in files for word in ("--config", str(file)))
        main(["fit", *configs, "--run", str(run), "--trainer.accelerator", "cpu", "--trainer.devices", "1"])

    return forked([work])[0]


def test_there_are_configurations() -> None:
    assert QUICKSTART in FILES
    assert len(FILES) >= 4


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.long if path.parent.name in SIZES else ()) for path in FILES],
    ids=lambda path: str(path.relative_to(CONFIGS)),
)
def test_the_configuration_is_taken(path: Path, tmp_path: Path) -> None:
    ended = instantiated(*layers(path), run=tmp_path)
    assert ended.code == 0, ended.out
    assert "ready" in ended.out


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_the_comment_says_how_to_run_it(path: Path) -> None:
    """Files that comments name exist, and a command in a comment names the file itself."""
    comment = " ".join(line[1:] for line in path.read_text("utf-8").splitlines() if line.startswith("#"))
    assert comment, "no comment says what the file is for"
    named = [word for word in comment.split() if word.startswith("configs/") and word.endswith(".yaml")]
    assert all((CONFIGS.parent / word).is_file() for word in named), named
    if named:
        assert str(path.relative_to(CONFIGS.parent)) in named


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param("data: {batch_syze: 4}", "did you mean data.batch_size", marks=pytest.mark.representative),
        ("model: {objective: {class_path: dpo, init_args: {beta: -1}}}", "beta"),
        ("trainer: {max_steps: many}", "max_steps"),
    ],
)
def test_a_wrong_one_would_be_noticed(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(wrong, "utf-8")
    ended = instantiated(QUICKSTART, path, run=tmp_path / "run")
    assert ended.code == 2
    assert message in ended.out
