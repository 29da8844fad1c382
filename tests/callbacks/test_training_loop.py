"""A run that receives a signal stops cleanly, and resuming from it gives the result of an uninterrupted run."""

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

from lit_align.callbacks import GracefulStop, training_loop
from lit_align.callbacks.checkpointing.checksums import damage
from lit_align.interrupts import Stopped, Waiting
from tests.runner import BASE, SHORT, distance, distributed, lit_align, metrics, ok, weights

LONG = pytest.mark.long
PATIENCE = 120
"""Seconds to wait for something that takes five seconds on an idle machine."""
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", 2)


def words(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "averaged_dpo", "--data.train", rows),
        *("--data.batch_size", 2, *more),
    )


def stopped(
    run: Path,
    *command: object,
    number: int = signal.SIGTERM,
    ready: Callable[[], bool] | None = None,
    to_all: bool = False,
) -> tuple[int, str]:
    """Signal a process when it is ready, by default after two reported steps; return exit code and output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (run.parent / f"{run.name}.out").open("w+", encoding="utf-8") as output:
        python = [sys.executable, "-m", "lit_align", *map(str, command)]
        process = subprocess.Popen(python, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            until(lambda: (ready() if ready else reported(run) >= 2) or process.poll() is not None)
            if to_all:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
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
    """Return whether any process of the group, and so any rank, is still running."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.resume("behind SIGTERM and Ctrl-C")
@pytest.mark.fault("D11", "L06")
@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        pytest.param(signal.SIGTERM, 143, "SIGTERM", id="TERM"),
        pytest.param(signal.SIGINT, 130, "Ctrl-C", id="INT", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_and_the_resumed_run_is_the_undisturbed_one(
    rows: Path, tmp_path: Path, number: int, code: int, name: str
) -> None:
    many = ("--trainer.max_steps", 20)
    ended, out = stopped(tmp_path / "stopped", *words(tmp_path / "stopped", rows, *many), number=number)
    assert ended == code, out
    assert "Traceback" not in out
    assert f"stopped by {name} after step" in out
    interrupt = tmp_path / "stopped" / "checkpoints" / "interrupt.ckpt"
    assert 2 <= reported(tmp_path / "stopped") < 20
    resumed = ok(lit_align(*words(tmp_path / "stopped", rows, *many, "--ckpt_path", interrupt)))
    assert "after 20 steps" in resumed.out
    ok(lit_align(*words(tmp_path / "whole", rows, *many)))
    assert distance(weights(tmp_path / "stopped"), weights(tmp_path / "whole")) == 0.0
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


HANGS = """
import os, time
from pathlib import Path
from lightning.pytorch import Callback

calls = 0


def rate(prompts, responses):
    global calls
    calls += 1
    if calls == 3 and "HANGS" in os.environ:
        Path(os.environ["HANGS"]).touch()
        while True:
            time.sleep(0.1)
    return [float(len(response)) for response in responses]


class SlowSetup(Callback):
    def setup(self, trainer, module, stage):
        Path(os.environ["HANGS"]).touch()
        time.sleep(600)
"""


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is created when user code hangs."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "hanging.py").write_text(HANGS)
    monkeypatch.setenv("HANGS", str(tmp_path / "hangs"))
    return tmp_path / "hangs"


def test_ctrl_c_after_a_signal_stops_at_once_and_another_sigterm_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers repeat SIGTERM; the checkpoint of the step is still saved then."""
    monkeypatch.setattr(training_loop, "waiting", Waiting())
    before = signal.getsignal(signal.SIGALRM)
    stop = GracefulStop()
    try:
        stop._receive(signal.SIGTERM, None)
        stop._receive(signal.SIGTERM, None)
        with pytest.raises(Stopped) as stopped:
            stop._receive(signal.SIGINT, None)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert stopped.value.code == 130


@pytest.mark.resume("behind a signal while a score function hangs")
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_is_obeyed_while_a_score_function_hangs(
    rows: Path, tmp_path: Path, hanging: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is that of the previous step; resuming from it reproduces the uninterrupted run."""

    def online(run: Path, *more: object) -> tuple[object, ...]:
        return (
            *("fit", "--task", "online", "--run", run, *BASE, *SHORT, "--model.objective", "kl_rlhf"),
            *("--data.train", rows, "--data.batch_size", 2, "--trainer.max_steps", 4, "--extend", tmp_path / "parts"),
            *("--model.score", "FunctionScore", "--model.score.function", "hanging.rate"),
            *("--model.responses", 2, "--model.sampling.max_new_tokens", 4, *more),
        )

    run = tmp_path / "stopped"
    code, out = stopped(run, *online(run), number=number, ready=hanging.exists)
    assert code == 128 + number, out
    assert "Traceback" not in out
    monkeypatch.delenv("HANGS")
    interrupt = run / "checkpoints" / "interrupt.ckpt"
    assert torch.load(interrupt, weights_only=True)["global_step"] == 2
    ok(lit_align(*online(run, "--ckpt_path", interrupt)))
    ok(lit_align(*online(tmp_path / "whole")))
    assert distance(weights(run), weights(tmp_path / "whole")) == 0.0
    assert metrics(run) == metrics(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_signal_is_obeyed_while_a_run_is_set_up(rows: Path, tmp_path: Path, hanging: Path, number: int) -> None:
    run = tmp_path / "run"
    slow = ("--extend", tmp_path / "parts", "--trainer.callbacks+=hanging.SlowSetup", "--trainer.max_steps", 2)
    code, out = stopped(run, *words(run, rows, *slow), number=number, ready=hanging.exists)
    assert code == 128 + number, out
    assert "Traceback" not in out


@pytest.mark.long
@pytest.mark.resume("behind SIGTERM to one of two processes")
@pytest.mark.fault("LE2")
def test_sigterm_to_the_launcher_stops_both_processes(rows: Path, tmp_path: Path) -> None:
    """Only rank zero receives the signal; the other rank is told between two steps."""
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


LEAVES_SLOWLY = """
import time
from lightning.pytorch import Callback


class LeavesSlowly(Callback):
    def on_exception(self, trainer, module, exception):
        time.sleep(7 if trainer.is_global_zero else 0)
"""


@pytest.mark.long
@pytest.mark.fault("LE2")
def test_sigterm_under_fsdp_leaves_a_checkpoint_and_ends_both_processes(rows: Path, tmp_path: Path) -> None:
    """Rank zero leaves so slowly that Lightning sees the end of the other; it is not killed for it."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "leaving.py").write_text(LEAVES_SLOWLY)
    run, many = tmp_path / "run", ("--trainer.max_steps", 40, "--trainer.strategy", "fsdp", "--trainer.devices", 2)
    slowly = ("--extend", tmp_path / "parts", "--trainer.callbacks+=leaving.LeavesSlowly")
    code, out = stopped(run, *words(run, rows, *many, *slowly))
    assert code == 143, out
    assert "Traceback" not in out
    interrupt = run / "checkpoints" / "interrupt.ckpt"
    assert damage(interrupt) is None
    for ended in distributed(2, *words(run, rows, *many, "--ckpt_path", interrupt)):
        ok(ended)
    assert metrics(run)[-1]["step"] == 40


@pytest.mark.long
@pytest.mark.fault("LE2")
def test_ctrl_c_to_all_processes_leaves_a_checkpoint_and_ends_them(rows: Path, tmp_path: Path) -> None:
    """A terminal sends it to the launcher and to the processes alike."""
    run = tmp_path / "run"
    many = ("--trainer.max_steps", 400, *TWO)
    code, out = stopped(run, *words(run, rows, *many), number=signal.SIGINT, to_all=True)
    assert code == 130, out
    assert "Traceback" not in out
    assert damage(run / "checkpoints" / "interrupt.ckpt") is None


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


@pytest.mark.parametrize(
    ("at", "step"),
    [pytest.param(1, 1, marks=LONG), (3, 2), pytest.param(4, 2, marks=LONG), pytest.param(5, 3, marks=LONG)],
)
@pytest.mark.resume("behind SIGTERM inside a window of accumulation and before a validation")
def test_a_signal_inside_a_window_waits_for_the_step(rows: Path, tmp_path: Path, at: int, step: int) -> None:
    """Two batches per step, and a validation after every second step, which counts as part of it."""
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
