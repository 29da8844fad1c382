"""One small sweep: stopped in its first cell, repeated while a file is missing, and repeated again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_align.cli import main
from tests.runner import Ended, fork, lit_align, metrics, ok, weights

BASE = {
    "model.policy": "testbed:policy",
    "model.optimizer.lr": 1e-3,
    "model.objective": "dpo",
    "data.batch_size": 4,
    "trainer.max_steps": 12,
    "trainer.log_every_n_steps": 1,
    "trainer.accelerator": "cpu",
    "samples.count": 0,
    "export.form": "none",
}
FIRST = "train=pairs.jsonl-beta=0.1-seed=0"


@dataclass(frozen=True)
class Swept:
    """A sweep of two data files, two values of β and two seeds for one of them, and how its three tries ended."""

    folder: Path
    grid: Path
    stopped: Ended
    broken: Ended
    complete: Ended

    def marker(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / name / "cell.json").read_text())
        return content


@pytest.fixture(scope="module")
def swept(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    tmp = tmp_path_factory.mktemp("tried")
    folder, grid, late = tmp / "sweep", tmp / "grid.yaml", tmp / "late.jsonl"
    shutil.copy(rows, tmp / "pairs.jsonl")
    data = [
        {"data.train": str(tmp / "pairs.jsonl"), "model.objective.beta": [0.1, 0.5]},
        {"data.train": str(late), "model.objective.beta": 0.1},
    ]
    grid.write_text(yaml.safe_dump({"base": BASE, "run": str(folder), "grid": {"data": data}, "seeds": 2}))
    names = [path.name for path in (tmp / "pairs.jsonl", late)]
    assert names == ["pairs.jsonl", "late.jsonl"]
    stopped = stop_in_a_cell(grid, folder, tmp / "out.txt")
    broken = lit_align("sweep", grid, "--processes", 2)
    shutil.copy(rows, late)
    return Swept(folder, grid, stopped, broken, lit_align("sweep", grid, "--processes", 2, "--metrics", "train/loss"))


def stop_in_a_cell(grid: Path, folder: Path, output: Path) -> Ended:
    """Run a sweep and send it SIGTERM as soon as a cell has taken two steps."""
    child = fork(lambda: main(["sweep", str(grid)]), output)
    deadline = time.monotonic() + 60
    while not any(len(metrics(run.parent)) > 1 for run in folder.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.read_text("utf-8"))


def test_placeholder(swept: Swept) -> None:
    print(swept.stopped.out, swept.broken.out, swept.complete.out, sep="\n=====\n")
    print(sorted(path.name for path in swept.folder.iterdir()))
    raise AssertionError
