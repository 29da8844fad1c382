"""A run that is asked to stop ends in order, and what goes on from there ends where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_align import testbed
from tests.runner import distributed, lit_align
from tests.test_runs import BASE, SHORT, distance, metrics, ok, weights

PATIENCE = 120
"""Seconds to wait for what takes five on an idle machine."""
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", 2)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()[:11]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "averaged_dpo", "--data.train", rows),
        *("--data.batch_size", 2, *more),
    )


def stopped(run: Path, *words: object) -> tuple[int, str]:
    """Exit code and output of a process that gets SIGTERM as soon as it has reported two steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run.parent / f"{run.name}.out").open("w+", encoding="utf-8") as output:
        command = [sys.executable, "-m", "lit_align", *map(str, words)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            until(lambda: reported(run) >= 2 or process.poll() is not None)
            process.send_signal(signal.SIGTERM)
            code = process.wait(PATIENCE)
            until(lambda: not alive(process.pid))
        finally:
            if alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return code, output.read()
