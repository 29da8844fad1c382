"""An error in one process ends all processes soon and is reported once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_align.callbacks.checkpointing.checksums import damage, newest_intact
from tests.runner import BASE, SHORT, distributed, metrics

PART = '''
import os, signal, time
from dataclasses import dataclass
from lit_align.objectives import Contrast, Logistic

calls = []

@dataclass(frozen=True)
class Faulty(Contrast):
    """The logistic loss, except on the third batch of rank one, where it fails."""
    beta: float = 0.1
    fault: str = "raise"

    def __call__(self, margin):
        calls.append(1)
        if os.environ.get("LOCAL_RANK") == "1" and len(calls) >= 5:
            if self.fault == "raise":
                raise RuntimeError("a part of the user's own has a mistake")
            if self.fault in ("SIGKILL", "SIGTERM"):
                os.kill(os.getpid(), getattr(signal, self.fault))
            if self.fault == "sleep":
                time.sleep(1000)
            if self.fault == "nan":
                return Logistic(self.beta)(margin) * float("nan")
        return Logistic(self.beta)(margin)
'''


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "faulty.py").write_text(PART)
    return folder


def words(run: Path, rows: Path, parts: Path, fault: str) -> tuple[object, ...]:
    contrast = f"{{class_path: faulty.Faulty, init_args: {{fault: {fault}}}}}"
    objective = f"{{class_path: PreferenceObjective, init_args: {{contrast: {contrast}}}}}"
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--data.train", rows, "--data.batch_size", 2, "--extend", parts),
        *("--model.objective", objective, "--trainer.max_steps", 6, "--checkpoints.every_n_steps", 1),
    )


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
@pytest.mark.fault("E04", "LE2")
def test_e04_an_error_on_one_rank_ends_all_and_is_told_once(
    rows: Path, parts: Path, tmp_path: Path, strategy: str
) -> None:
    began = time.monotonic()
    first, second = distributed(2, *words(tmp_path / "run", rows, parts, "raise"), "--trainer.strategy", strategy)
    assert time.monotonic() - began < 60
    assert first.code == 1, first.out
    assert second.code == 1, second.out
    assert "a part of the user's own has a mistake" in second.out
    assert "another process ended" in first.out
    assert "Traceback" not in first.out


@pytest.mark.fault("E03")
def test_e03_a_loss_that_is_not_finite_on_one_rank_stops_all_before_the_step(
    rows: Path, parts: Path, tmp_path: Path
) -> None:
    ended = distributed(2, *words(tmp_path / "run", rows, parts, "nan"))
    assert [one.code for one in ended] == [1, 1]
    assert "gradient norm is nan; every loss of this process is finite" in ended[0].out
    assert "gradient norm is nan; the loss is not finite of rows pairs.jsonl" in ended[1].out


@pytest.mark.fault("E06", "LE2")
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_e06_a_rank_that_is_killed_ends_all_and_its_checkpoints_stay(
    rows: Path, parts: Path, tmp_path: Path, strategy: str
) -> None:
    began = time.monotonic()
    command = words(tmp_path / "run", rows, parts, "SIGKILL")
    first, second = distributed(2, *command, "--trainer.strategy", strategy)
    assert time.monotonic() - began < 60
    assert (first.code, second.code) == (1, -signal.SIGKILL), first.out
    assert "another process ended" in first.out
    assert "Traceback" not in first.out
    assert newest_intact(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.fault("LE2")
def test_le2_a_rank_that_is_asked_to_stop_stops_all_in_order(rows: Path, parts: Path, tmp_path: Path) -> None:
    ended = distributed(2, *words(tmp_path / "run", rows, parts, "SIGTERM"))
    assert [one.code for one in ended] == [143, 143]
    assert damage(tmp_path / "run" / "checkpoints" / "interrupt.ckpt") is None


STRATEGIES = {
    "fsdp": ("lit_align.strategies.FullySharded", "--trainer.strategy.timeout_minutes", "0.25"),
    "ddp": ("lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.timeout", "0:00:15"),
}


def own_processes(*command: object) -> tuple[int, str, bool]:
    """Return exit code, output and leftover processes of a run that starts its second process itself."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_align", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=100)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
            left = True
        except ProcessLookupError:
            left = False
    return process.returncode, out, left


@pytest.mark.long
@pytest.mark.fault("E05")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_e05_a_rank_that_hangs_is_given_up(rows: Path, parts: Path, tmp_path: Path, strategy: str) -> None:
    """After 15 seconds both report where they hang, and the waiting process ends the other one."""
    name, key, patience = STRATEGIES[strategy]
    command = [*words(tmp_path / "run", rows, parts, "sleep"), "--trainer.devices", 2]
    code, out, left = own_processes(*command, "--trainer.strategy", name, key, patience)
    assert code == 1, out
    assert not left
    assert "another process ended or does not answer" in out
    stacks = {
        int(rank): stack for rank, stack in re.findall(r"^rank (\d) has been .*\n((?:  .*\n)+)", out, re.MULTILINE)
    }
    assert sorted(stacks) == [0, 1], out
    assert "time.sleep(1000)" in stacks[1]
    assert "time.sleep(1000)" not in stacks[0]
    assert metrics(tmp_path / "run"), "it hung behind the first step"
    last = (tmp_path / "run" / "metrics.jsonl").stat().st_mtime
    assert time.time() - last < 15 + 30


@pytest.mark.fault("E05")
def test_e05_a_rank_that_is_only_slow_is_left_alone(rows: Path, parts: Path, tmp_path: Path) -> None:
    """The silence is longer than the timeout in total, but not within one batch."""
    for ended in distributed(2, *words(tmp_path / "run", rows, parts, "none"), "--trainer.strategy", "ddp"):
        assert ended.code == 0, ended.out
        assert "has been in one batch" not in ended.out
