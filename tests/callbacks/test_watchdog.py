"""A hanging process reports where it hangs, and ends with the run."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from lit_align.callbacks.watchdog import Watchdog, end_processes


def look(moves: int, patience: float) -> None:
    """Watch this thread while it makes progress and then stalls."""
    watch, over = Watchdog(), threading.Event()
    watch._last_progress = time.monotonic()
    thread = threading.Thread(target=watch._watch, args=(3, patience, threading.get_ident(), over))
    thread.start()
    for _ in range(moves):
        time.sleep(patience / 4)
        watch.on_train_batch_start()
    time.sleep(0 if moves else 4 * patience)
    over.set()
    thread.join()


def test_the_stack_of_a_process_that_does_not_move_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    look(moves=0, patience=0.2)
    said = capsys.readouterr().err
    assert said.count("rank 3 has been in one batch for 0.2 s; it stands here:\n") == 1
    assert "time.sleep(0 if moves else 4 * patience)" in said


def test_one_that_moves_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    look(moves=12, patience=0.4)
    assert capsys.readouterr().err == ""


def test_what_ends_is_waited_for_and_what_hangs_is_ended() -> None:
    sleeps = [subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({s})"]) for s in (0.1, 1000)]
    began = time.monotonic()
    end_processes(sleeps, grace=3.0)
    assert time.monotonic() - began < 30
    assert [process.wait(30) for process in sleeps] == [0, -9]
