"""Processes: retries, devices, what is said in the meantime."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lit_align.interrupts import Stopped
from lit_align.sweep import pool as module
from lit_align.sweep import worker
from lit_align.sweep.command import threads_each
from lit_align.sweep.pool import ProcessPool, SweepRun, last_lines, prepare_caches
from lit_align.sweep.prepare import preparation_group
from lit_align.sweep.worker import LOG, Task


class Scripted(ProcessPool):
    """A pool whose tasks end by given exit codes, one after the other."""

    def __init__(self, codes: dict[str, list[int]]) -> None:
        super().__init__(1)
        self.codes = codes
        self.ran: list[Task] = []

    def run(self, tasks: Sequence[Task], ended: Callable[[Task, int], Task | None]) -> None:
        waiting = list(tasks)
        while waiting:
            self.ran.append(waiting.pop(0))
            again = ended(self.ran[-1], self.codes[self.ran[-1].name].pop(0))
            waiting += [again] if again is not None else []


def task(name: str, folder: Path, group: str = "") -> Task:
    return Task(name, folder / name, (), {"settings": {}}, group=group)


def test_a_cell_is_tried_again_from_its_checkpoint_and_then_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What keeps a cell from going on may be the checkpoint itself."""
    pool = Scripted({"a": [1, 137, 0], "b": [0], "c": [2, 2, 2]})
    run = SweepRun(pool, total=4, done=1, retries=2, can_resume=lambda task: task.name != "c")
    failed = run.run([task(name, tmp_path) for name in "abc"])
    assert [(ran.name, ran.anew) for ran in pool.ran if ran.name == "a"] == [("a", False), ("a", True), ("a", False)]
    assert [ran.anew for ran in pool.ran if ran.name == "c"] == [False] * 3
    assert failed == {"c": tmp_path / "c" / LOG}
    printed = capsys.readouterr()
    assert "[2/4] finished b; about" in printed.out
    assert "a ended with code 137; trying again" in printed.err
    assert "[4/4] failed c" in printed.out


def test_one_of_each_group_is_prepared(tmp_path: Path) -> None:
    tasks = [task(name, tmp_path, group) for name, group in (("a", "x"), ("b", "x"), ("c", "y"))]
    pool = Scripted({"caches of a": [1], "caches of c": [0]})
    prepare_caches(pool, tasks)  # what fails for some is reported by their cells
    assert [ran.name for ran in pool.ran] == ["caches of a", "caches of c"]
    with pytest.raises(ValueError, match=r"the data of the cells cannot be prepared \(.*prepare-0/log.txt\)"):
        prepare_caches(Scripted({"caches of a": [1], "caches of c": [1]}), tasks)


class Process:
    """A process that has ended as soon as it is started."""

    pid, sentinel, exitcode = None, 0, 0

    def join(self) -> None:
        pass


def test_a_device_is_used_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[str | None] = []
    taken: list[str | None] = []

    def start(task: Task, threads: int | None, device: str | None) -> Process:
        assert device not in busy
        busy.append(device)
        taken.append(device)
        return Process()

    def ended(task: Task, code: int) -> None:
        busy.pop(0)

    pool = ProcessPool(2, ["GPU-a", "GPU-b"])
    monkeypatch.setattr(module, "start_process", start)
    monkeypatch.setattr(pool, "_wait", lambda: list(pool.running)[:1])
    pool.run([task(name, tmp_path) for name in "abcd"], ended)
    assert taken == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]


def test_a_signal_while_a_process_is_forked_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both processes end by it, also the one that had the handlers of its parent when it came."""
    codes: list[int | None] = []

    def work(*rest: object) -> None:
        time.sleep(0.3)
        worker.leave_parents_signals()
        time.sleep(20)

    def start(*rest: object) -> BaseProcess:
        process = worker.start_process(*rest)  # type: ignore[arg-type]
        if len(pool.running) == 1:  # the signal comes before the second process is known
            signal.raise_signal(signal.SIGTERM)
        return process

    def ended(process: BaseProcess) -> None:
        original(process)
        codes.append(process.exitcode)

    original = BaseProcess.join
    monkeypatch.setattr(BaseProcess, "join", ended)
    monkeypatch.setattr(worker, "run_task", work)
    monkeypatch.setattr(module, "start_process", start)
    before = signal.getsignal(signal.SIGTERM)
    pool, began = ProcessPool(2), time.monotonic()
    with pytest.raises(Stopped) as stopped:
        pool.run([task(name, tmp_path) for name in "abc"], lambda task, code: None)
    assert stopped.value.code == 143
    assert codes == [-signal.SIGTERM] * 2
    assert time.monotonic() - began < 15
    assert signal.getsignal(signal.SIGTERM) is before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}


def test_threads_are_shared_unless_their_number_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_each(2) is None
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert [threads_each(count) for count in (1, 2, 3, 20)] == [None, 4, 2, 1]


def test_last_lines_are_safe_to_print(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("── 2026\none\n\ntwo\x1b[2J\n── 2026\nthree\nfour\n")
    assert last_lines(log) == ["two\\x1b[2J", "three", "four"]
    assert last_lines(tmp_path / "none.txt") == []


def test_runs_of_every_task_are_grouped_by_what_they_prepare() -> None:
    """Only the pairs of preference objectives need more than prompt and responses."""

    def group(task: str, objective: str) -> str:
        return preparation_group(["--task", task, "--model.policy", "testbed:policy", "--model.objective", objective])

    assert group("preference", "dpo") == group("preference", "ipo") != group("preference", "sr_dpo")
    assert group("online", "kl_rlhf") == group("online", "pm_rlhf") != group("preference", "dpo")
    assert group("online", "dpo") == group("online", "ipo") != group("online", "sr_dpo")
    preparation_group(["--task", "reward", "--model.policy", "testbed:policy"])
