"""A run that is asked to stop ends in order, and what goes on from there ends where an undisturbed run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runner import BASE, SHORT, distance, distributed, lit_align, metrics, ok, weights

PATIENCE = 120
"""Seconds to wait for what takes five on an idle machine."""
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", 2)


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "averaged_dpo", "--data.train", rows),
        *("--data.batch_size", 2, *more),
    )


def stopped(run: Path, *command: object) -> tuple[int, str]:
    """Exit code and output of a process that gets SIGTERM as soon as it has reported two steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run.parent / f"{run.name}.out").open("w+", encoding="utf-8") as output:
        python = [sys.executable, "-m", "lit_align", *map(str, command)]
        process = subprocess.Popen(python, stdout=output, stderr=output, env=environment, start_new_session=True)
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


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def reported(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text("utf-8").count("\n") if path.exists() else 0


def alive(group: int) -> bool:
    """Whether any process of the group, and so any rank, is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.resume("behind SIGTERM")
@pytest.mark.fault("D11", "L06")
def test_sigterm_saves_and_the_resumed_run_is_the_undisturbed_one(rows: Path, tmp_path: Path) -> None:
    many = ("--trainer.max_steps", 120)
    code, out = stopped(tmp_path / "stopped", *words(tmp_path / "stopped", rows, *many))
    assert code == 143, out
    assert "Traceback" not in out
    assert "stopped by SIGTERM after step" in out
    interrupt = tmp_path / "stopped" / "checkpoints" / "interrupt.ckpt"
    assert 2 <= reported(tmp_path / "stopped") < 120
    resumed = ok(lit_align(*words(tmp_path / "stopped", rows, *many, "--ckpt_path", interrupt)))
    assert "after 120 steps" in resumed.out
    ok(lit_align(*words(tmp_path / "whole", rows, *many)))
    assert distance(weights(tmp_path / "stopped"), weights(tmp_path / "whole")) == 0.0
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


@pytest.mark.resume("behind SIGTERM to one of two processes")
@pytest.mark.fault("LE2")
def test_sigterm_to_the_launcher_stops_both_processes(rows: Path, tmp_path: Path) -> None:
    """The signal reaches rank zero only; the other one hears of it between two steps."""
    many = ("--trainer.max_steps", 60, *TWO)
    code, out = stopped(tmp_path / "stopped", *words(tmp_path / "stopped", rows, *many))
    assert code == 143, out
    assert "Traceback" not in out
    interrupt = tmp_path / "stopped" / "checkpoints" / "interrupt.ckpt"
    for ended in distributed(2, *words(tmp_path / "stopped", rows, *many, "--ckpt_path", interrupt)):
        ok(ended)
    for ended in distributed(2, *words(tmp_path / "whole", rows, *many)):
        ok(ended)
    assert distance(weights(tmp_path / "stopped"), weights(tmp_path / "whole")) == 0.0


TERMINATES = """
import os
import signal
from lightning.pytorch import Callback


class Terminates(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(("at", "step"), [(1, 1), (3, 2), (4, 2), (5, 3)])
@pytest.mark.resume("behind SIGTERM inside a window of accumulation and before a validation")
def test_a_signal_inside_a_window_waits_for_the_step(rows: Path, tmp_path: Path, at: int, step: int) -> None:
    """Two batches to a step; a validation behind every second step, which belongs to it."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "terminating.py").write_text(TERMINATES)
    more = (
        *("--trainer.max_steps", 5, "--trainer.accumulate_grad_batches", 2, "--data.validation", rows),
        *("--trainer.val_check_interval", 4, "--trainer.check_val_every_n_epoch", "null"),
    )
    run = tmp_path / "run"
    terminates = ("--trainer.callbacks+=terminating.Terminates", f"--trainer.callbacks.at={at}")
    ended = lit_align(*words(run, rows, *more, "--extend", tmp_path / "parts", *terminates))
    assert ended.code == 143, ended.out
    interrupt = run / "checkpoints" / "interrupt.ckpt"
    assert torch.load(interrupt, weights_only=True)["global_step"] == step
    assert [line["step"] for line in metrics(run) if "val/loss" in line] == [2] * (step >= 2)
    ok(lit_align(*words(run, rows, *more, "--ckpt_path", interrupt)))
    ok(lit_align(*words(tmp_path / "whole", rows, *more)))
    assert metrics(run) == metrics(tmp_path / "whole")
    assert distance(weights(run), weights(tmp_path / "whole")) == 0.0
