"""After SIGKILL while saving, the last complete checkpoint is intact, on any file system."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import get_worker_info

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO
from lit_align.callbacks.checkpointing.checksums import damage, newest_intact
from lit_align.data.batches.collate import Collate
from tests.runner import BASE, SHORT, distance, distributed, fork, lit_align, metrics, ok, ranks, weights

WEIGHTS = torch.zeros(2_000_000)
KILLS = [5, pytest.param(50, marks=pytest.mark.long)]


def saves_for_ever(save: Callable[[dict[str, object], Path], None], folder: Path, first: int, told: int) -> None:
    """Save alternately under two names, so that every save replaces an older one, and print each finished step."""
    step = first
    while True:
        save({"step": step, "weights": WEIGHTS + step}, folder / f"{step % 2}.ckpt")
        os.write(told, step.to_bytes(8, "big"))
        step += 1


def killed(save: Callable[[dict[str, object], Path], None], folder: Path, first: int, after: float) -> int:
    """Return the last step that a child reported as saved before it was killed; ``first - 1`` if none."""
    hears, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(hears)
            saves_for_ever(save, folder, first, told)
        finally:
            os._exit(1)
    os.close(told)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(hears, "rb") as pipe:
        said = pipe.read()
    return int.from_bytes(said[-8:], "big") if said else first - 1


def steps_lost(save: Callable[[dict[str, object], Path], None], folder: Path, kills: int) -> list[int]:
    """Return, for each kill, how many steps the newest intact checkpoint is behind the last finished one."""
    lost, step, delays = [], 0, random.Random(0)
    for _ in range(kills):
        step = killed(save, folder, step + 1, after=delays.uniform(0.05, 0.25))
        found = newest_intact(folder)
        at = int(torch.load(found, weights_only=True)["step"]) if found else 0
        lost.append(step - at)
        step = max(step, at)
    return lost


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's folder for temporary files is on another file system than the checkpoints, where there is one."""
    memory = Path("/dev/shm")
    if memory.is_dir() and memory.stat().st_dev != tmp_path.stat().st_dev:
        monkeypatch.setenv("TMPDIR", str(memory))


@pytest.mark.fault("L08", "D06", "D06b")
@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.usefixtures("elsewhere")
def test_l08_no_kill_loses_what_was_saved(tmp_path: Path, kills: int) -> None:
    assert max(steps_lost(AtomicCheckpointIO().save_checkpoint, tmp_path, kills)) <= 0
    assert [damage(path) for path in tmp_path.glob("*.ckpt")] == [None, None]


def test_a_writer_that_writes_in_place_is_caught(tmp_path: Path) -> None:
    """The same test with checksums but without the rename: some kill leaves a partial file."""

    def in_place(checkpoint: dict[str, object], path: Path) -> None:
        from lit_align.callbacks.checkpointing.checksums import ChecksumWriter

        with path.open("wb") as file:
            writer = ChecksumWriter(file)
            torch.save(checkpoint, writer)
            writer.close()

    damaged = 0
    for kill in range(20):
        killed(in_place, tmp_path, 2 * kill + 1, after=0.1)
        damaged += sum(damage(path) is not None for path in tmp_path.glob("*.ckpt"))
    assert damaged > 0


# ── whole runs ──────────────────────────────────────────────────────────────────────────────────────────────────────

PATIENCE = 120.0
"""Seconds for what takes five on an idle machine."""


def words(run: Path, rows: Path, steps: int, *more: object) -> Sequence[object]:
    return (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "averaged_dpo", "--data.train", rows),
        *("--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2, "--checkpoints.every_n_steps", 1),
        *("--trainer.max_steps", steps, "--ckpt_path", "last", *more),
    )


def parts_of_a_save(run: Path) -> frozenset[str]:
    """Return the names in the folder of checkpoints, including partially written ones."""
    folder = run / "checkpoints"
    return frozenset(path.name for path in folder.iterdir()) if folder.exists() else frozenset()


def kill_one(run: Path, processes: Sequence[Callable[[], None]], which: int, delays: random.Random) -> str:
    """Start processes, kill one after its first save or during its second, and return the output of all."""
    outputs = [run.parent / f"{run.name}.{number}.out" for number in range(len(processes))]
    for output in outputs:
        output.unlink(missing_ok=True)
    before = parts_of_a_save(run)
    children = [fork(work, output) for work, output in zip(processes, outputs, strict=True)]
    ended: list[int] = []
    end = time.monotonic() + PATIENCE
    saved = False
    while not ended and time.monotonic() < end:
        now = parts_of_a_save(run)
        saved = saved or any(name.startswith("step=") for name in now - before)
        if saved and (delays.random() < 0.02 or any(name.endswith(".tmp") for name in now)):
            break
        time.sleep(0.002)
        ended = [child for child in children if os.waitpid(child, os.WNOHANG)[0]]
    assert not ended, outputs[children.index(ended[0])].read_text("utf-8")
    time.sleep(delays.uniform(0, 0.05))
    os.kill(children[which], signal.SIGKILL)
    for child in children:
        while not os.waitpid(child, os.WNOHANG)[0]:
            assert time.monotonic() < end, "the others wait for the one that was killed"
            time.sleep(0.01)
    return "".join(output.read_text("utf-8") for output in outputs)


def newest_step(run: Path) -> int:
    """Return the step of the newest intact checkpoint, and check that it can be read."""
    found = newest_intact(run / "checkpoints")
    assert found is not None
    return int(AtomicCheckpointIO().load_checkpoint(found)["global_step"])


def heard(work: Callable[[], None]) -> Callable[[], None]:
    """The same work, with what Lightning logs in its output."""

    def loud() -> None:
        for name in ("lightning", "lightning.pytorch"):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(sys.stderr)
        work()

    return loud


@pytest.mark.long
@pytest.mark.fault("L08", "D06", "D06b")
@pytest.mark.resume("killed many times while it saves every step, the system's temporary files elsewhere")
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("kills", [4, 50])
def test_l08_a_run_that_is_killed_many_times_is_the_undisturbed_one(rows: Path, tmp_path: Path, kills: int) -> None:
    run, whole, delays, at = tmp_path / "run", tmp_path / "whole", random.Random(1), 0
    command = words(run, rows, 8 * kills)
    for _ in range(kills):
        kill_one(run, ranks(1, *command), 0, delays)
        step = newest_step(run)
        assert step > at, "every attempt saves at least one step, and none of them is lost"
        assert step >= metrics(run)[-1]["step"] - 1
        at = step
    assert at < 8 * kills
    ok(lit_align(*command))
    ok(lit_align(*words(whole, rows, 8 * kills)))
    assert distance(weights(run), weights(whole)) == 0.0
    assert metrics(run) == metrics(whole)


@pytest.mark.long
@pytest.mark.fault("L08", "D06", "D08", "E06")
@pytest.mark.resume("weights cut among two processes, one of them killed while they save")
@pytest.mark.usefixtures("elsewhere")
def test_l08_whichever_process_is_killed_while_both_save_a_whole_checkpoint_is_left(
    rows: Path, tmp_path: Path
) -> None:
    kills = 8
    run, whole, delays, at = tmp_path / "run", tmp_path / "whole", random.Random(2), 0
    command = words(run, rows, 8 * kills, "--trainer.strategy", "fsdp")
    for kill in range(kills):
        began_at = newest_intact(run / "checkpoints") if at else None
        out = kill_one(run, [heard(work) for work in ranks(2, *command)], kill % 2, delays)
        assert began_at is None or f"the checkpoint path at {began_at}" in out, out
        step = newest_step(run)
        assert step > at
        at = step
    for ended in distributed(2, *command):
        ok(ended)
    for ended in distributed(2, *words(whole, rows, 8 * kills, "--trainer.strategy", "fsdp")):
        ok(ended)
    assert metrics(run) == metrics(whole)
    states = [
        AtomicCheckpointIO().load_checkpoint(one / "checkpoints" / "last.ckpt")["state_dict"] for one in (run, whole)
    ]
    assert distance(*states) == 0.0


# ── what a run goes on with ─────────────────────────────────────────────────────────────────────────────────────────

NOISE = """
from dataclasses import dataclass

import torch
from torch.utils.data import get_worker_info

from lit_align.objectives import Contrast, Logistic


@dataclass(frozen=True)
class Noisy(Contrast):
    beta: float = 0.1

    def __call__(self, margin):
        return Logistic(self.beta)(margin) * (1 + torch.rand_like(margin.detach()))
"""


@pytest.mark.long
@pytest.mark.fault("D05b")
@pytest.mark.resume("random numbers of a part, in a process whose generator stands elsewhere")
def test_d05b_random_numbers_follow_from_the_step_so_no_state_of_theirs_can_be_missing(
    rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "noise.py").write_text(NOISE)
    objective = "{class_path: PreferenceObjective, init_args: {contrast: {class_path: noise.Noisy}}}"
    more = ("--extend", tmp_path / "parts", "--checkpoints.keep", -1, "--model.objective", objective)
    run, whole = tmp_path / "run", tmp_path / "whole"
    ok(lit_align(*words(whole, rows, 5, *more)))
    assert len({line["train/loss"] for line in metrics(whole)}) == 5
    for step in (1, 2, 4):
        torch.rand(7 * step)  # what the child's generator begins with
        ok(lit_align(*words(run, rows, 5, *more, "--ckpt_path", whole / "checkpoints" / f"step={step}.ckpt")))
        assert distance(weights(run), weights(whole)) == 0.0


@pytest.mark.fault("L03", "D02")
@pytest.mark.parametrize(
    "more", [(), pytest.param(("--on_changed_settings", "warn"), marks=pytest.mark.long)], ids=["error", "warn"]
)
def test_l03_another_learning_rate_is_refused(rows: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    """The value is restored with the optimizer state, so a changed setting would have no effect."""
    run = tmp_path / "run"
    ok(lit_align(*words(run, rows, 1)))
    ended = lit_align(*words(run, rows, 2, "--model.optimizer.lr", "5e-3", *more))
    assert ended.code == 2, ended.out
    assert "lr: was 0.001, is 0.005" in ended.out
    assert "The optimizer's settings are part of its state: take the old ones" in ended.out
    ok(lit_align(*words(run, rows, 2, *more)))


def test_a_worker_of_the_data_loader_that_is_killed_names_its_rows(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second batch kills the worker that collates it; what rank zero says are the rows of that batch."""
    inner = Collate.__call__

    def collate(self: Collate, items: Any) -> Any:
        batch = inner(self, items)
        if get_worker_info() is not None:
            with (tmp_path / "batches").open("a") as file:
                print(*batch.index.tolist(), file=file)
            if len((tmp_path / "batches").read_text().splitlines()) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return batch

    monkeypatch.setattr(Collate, "__call__", collate)
    words = ("--data.train", rows, "--data.batch_size", 4, "--data.num_workers", 1, "--run", tmp_path / "run")
    ended = lit_align("fit", "--model.objective", "dpo", *BASE, *words, *SHORT)
    assert ended.code == 1
    first, *_, last = (tmp_path / "batches").read_text().splitlines()[1].split()
    expected = f"data.train, has 4 rows, the first {rows.name}:{int(first) + 1}, the last {rows.name}:{int(last) + 1}"
    assert f"its latest batch, of {expected}" in ended.out
    assert "lower data.num_workers" in ended.out
