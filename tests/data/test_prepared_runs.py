"""Runs and large data that are prepared once and kept."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import pytest

from lit_align import testbed
from lit_align.data import PreferenceData
from tests.runner import SHORT, Ended, distributed, forked, lit_align, metrics

CONFIGS = Path(__file__).parents[2] / "configs"
MIB = 2**10  # in the kibibytes of getrusage
LIMIT = 150


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(testbed.path("train.jsonl").read_text("utf-8").splitlines()[:16]) + "\n", "utf-8")
    return path


def words(tmp_path: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", tmp_path / "run", "--data.train", rows, "--data.cache", tmp_path / "cache"),
        *("--model.policy", "testbed:policy", "--model.objective", "dpo", "--trainer.max_steps", 2),
        *("--trainer.log_every_n_steps", 1, "--samples.count", 0, "--export.form", "none"),
        *(
            "--trainer.enable_progress_bar",
            "false",
            "--trainer.accelerator",
            "cpu",
            "--data.tokenize_workers",
            1,
            *more,
        ),
    )


def kept(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_run_finds_what_the_one_before_it_kept(tmp_path: Path, rows: Path) -> None:
    metrics = []
    for more in ((), ("--data.tokenize_workers", 0, "--data.batch_size", 4, "--trainer.accumulate_grad_batches", 2)):
        ended = lit_align(*words(tmp_path, rows, *more, "--model.optimizer.lr", "0"))
        assert ended.code == 0, ended.out
        lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()
        metrics.append([json.loads(line).get("train/loss") for line in lines])
        assert len(kept(tmp_path)) == 1
    assert metrics[0] == pytest.approx(metrics[1])
    text = (tmp_path / "run" / "config.yaml").read_text("utf-8")
    assert re.search(rf"^  cache: {tmp_path}/cache$", text, re.M)
    assert re.search(r"^  tokenize_workers: 0$", text, re.M)


def test_processes_of_a_run_share_what_one_prepares(tmp_path: Path, rows: Path) -> None:
    for ended in distributed(2, *words(tmp_path, rows)):
        assert ended.code == 0, ended.out
    assert len(kept(tmp_path)) == 1


def test_all_processes_of_a_run_fail_with_the_same_message(tmp_path: Path, rows: Path) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "p", "chosen": "", "rejected": "r"}\n')
    for ended in distributed(2, *words(tmp_path, rows)):
        assert ended.code == 2
        assert "pairs.jsonl:17: chosen: found empty; expected text" in ended.out
        assert "Traceback" not in ended.out


@pytest.mark.long
def test_four_pairs_are_learned_by_heart(tmp_path: Path) -> None:
    """What the comment in the configuration promises, with all of its steps."""
    path = CONFIGS / "debug" / "overfit_four_pairs.yaml"
    (promised,) = re.findall(r"below (\d\.\d+)", path.read_text("utf-8"))
    quickstart = ("--config", CONFIGS / "quickstart.yaml")
    ended = lit_align("fit", *quickstart, "--config", path, "--run", tmp_path, *SHORT)
    assert ended.code == 0, ended.out
    last = metrics(tmp_path)[-1]
    assert last["train/loss"] < float(promised)
    assert last["train/rewards/accuracies"] == 1


def prepared(path: Path, folder: Path) -> Ended:
    """Prepares a file in a child and prints how much its memory grew, in MiB."""

    def work() -> None:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = PreferenceData(train=str(path), tokenizer="testbed:policy", cache=str(folder), tokenize_workers=1)
        data.setup("fit")
        next(iter(data.train_dataloader()))
        print("grown by", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin) // MIB)

    return forked([work])[0]


@pytest.mark.long
def test_memory_does_not_follow_the_number_of_pairs(tmp_path: Path) -> None:
    """Thirty megabytes of text stay on disk: a pair costs memory for its numbers alone."""
    path = tmp_path / "many.jsonl"
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()
    with path.open("w", encoding="utf-8") as file:
        for number in range(50_000):
            row = json.loads(lines[number % len(lines)])
            file.write(json.dumps({**row, "prompt": f"{number} {row['prompt']}", "id": "x" * 300}) + "\n")
    for _ in range(2):
        ended = prepared(path, tmp_path / "cache")
        assert ended.code == 0, ended.out
        assert int(ended.out.split("grown by")[1]) < LIMIT
