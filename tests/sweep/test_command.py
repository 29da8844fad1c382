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
FIRST = "train=pairs.jsonl-seed=0"


@dataclass(frozen=True)
class Swept:
    """A sweep of two data files and two seeds, and how its three tries ended."""

    folder: Path
    grid: Path
    stopped: Ended
    marker: dict[str, Any]
    broken: Ended
    complete: Ended


@pytest.fixture(scope="module")
def swept(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    tmp = tmp_path_factory.mktemp("tried")
    folder, grid, late = tmp / "sweep", tmp / "grid.yaml", tmp / "late.jsonl"
    content = {"base": BASE, "run": str(folder), "grid": {"data.train": [str(rows), str(late)]}, "seeds": 2}
    grid.write_text(yaml.safe_dump(content))
    stopped = stop_in_a_cell(grid, folder, tmp / "out.txt")
    marker = json.loads((folder / FIRST / "cell.json").read_text())
    broken = lit_align("sweep", grid, "--processes", 2)
    shutil.copy(rows, late)
    complete = lit_align("sweep", grid, "--processes", 2, "--metrics", "train/loss")
    return Swept(folder, grid, stopped, marker, broken, complete)


def stop_in_a_cell(grid: Path, folder: Path, output: Path) -> Ended:
    """Run a sweep and send it SIGTERM as soon as a cell has taken two steps."""
    child = fork(lambda: main(["sweep", str(grid)]), output)
    deadline = time.monotonic() + 60
    while not any(len(metrics(run.parent)) > 1 for run in folder.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.01)
    os.kill(child, signal.SIGTERM)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.read_text("utf-8"))


def test_a_signal_stops_the_cells_in_order(swept: Swept) -> None:
    assert swept.stopped.code == 143, swept.stopped.out
    assert "SIGTERM: cells stop after their step; the same command goes on from there" in swept.stopped.out
    assert swept.marker["finished"] is False
    assert swept.marker["identity"]["settings"]["trainer.max_steps"] == 12


def test_cells_that_fail_are_tried_again_and_reported(swept: Swept) -> None:
    out = swept.broken.out
    assert swept.broken.code == 1, out
    assert out.count("ended with code 2; trying again") == 2
    assert "    error: data.train: data file not found" in out
    assert "[2/4] finished" in out
    assert f"failed: train=late.jsonl-seed=1: {swept.folder / 'train=late.jsonl-seed=1' / 'log.txt'}" in out


def test_finished_cells_are_skipped(swept: Swept) -> None:
    out = ok(swept.complete).out
    assert f"4 cells in {swept.folder}, 2 of them finished before" in out
    assert "train=late.jsonl-seed=0: starts anew, since the content of" in out
    assert "[3/4] finished train=late.jsonl-seed=" in out
    log = (swept.folder / FIRST / "log.txt").read_text().splitlines()
    assert sum(line.startswith("── ") for line in log) == 2  # stopped, and gone on with
    assert (swept.folder / "comparison" / "compare.html").is_file()
    table = json.loads((swept.folder / "sweep.json").read_text())
    assert [row["seeds"] for row in table["settings"]] == [[0, 1], [0, 1]]
    last = [metrics(swept.folder / f"train=pairs.jsonl-seed={seed}")[-1]["train/loss"] for seed in (0, 1)]
    assert table["settings"][0]["metrics"]["train/loss"]["mean"] == pytest.approx(sum(last) / 2)


@pytest.mark.resume("a cell of a sweep that was stopped and went on")
def test_a_cell_is_the_run_that_fit_makes_alone(swept: Swept, tmp_path: Path) -> None:
    """To the bit, although the cell was stopped, went on, and is a fork of a process that had imported everything."""
    cell, alone = swept.folder / FIRST, tmp_path / "alone"
    assert not (cell / "previous").exists()  # it went on, and did not start anew
    ok(lit_align("fit", "--config", cell / "config.yaml", "--run", alone))
    for name, weight in weights(alone).items():
        assert torch.equal(weights(cell)[name], weight), name
    assert metrics(cell) == metrics(alone)


def test_the_reference_is_computed_once_for_all_cells(swept: Swept) -> None:
    logs = [(swept.folder / "cache" / f"prepare-{number}" / "log.txt").read_text() for number in (0, 1)]
    assert "11 rows computed, 0 found" in logs[0]
    assert all("computed, 11 found" not in log or "0 rows computed" in log for log in logs)
    for cell in swept.folder.glob("train=*"):
        assert "reference  0 rows computed, 11 found" in (cell / "log.txt").read_text()


def test_other_settings_are_said_and_nothing_is_run(swept: Swept) -> None:
    ended = ok(lit_align("sweep", swept.grid, "--dry-run", "--trainer.max_steps", 13))
    assert f"{FIRST}  (starts anew: trainer.max_steps was 12 and is 13)" in ended.out
    assert f"4 cells in {swept.folder}, of which 0 have finished" in ended.out
