from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from lit_align.data.formats.base import ParsedRow
from lit_align.data.prepared import workers
from lit_align.data.prepared.workers import ordered_map, with_progress, without_progress


def slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is odd")
    return number


def end_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("processes", [0, 1, 3, None])
def test_results_come_in_the_order_of_the_work(processes: int | None) -> None:
    found = list(ordered_map(slow_first, range(9), processes))
    assert [number for number, _ in found] == list(range(9))
    here = {process == os.getpid() for _, process in found}
    assert here == {processes in (0, None)}
    assert list(ordered_map(slow_first, [], processes)) == []


def test_a_stream_that_is_not_small_is_shared_out_where_nobody_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SMALL", 4)
    found = [process for _, process in ordered_map(slow_first, range(9), None)]
    assert set(found[:4]) == {os.getpid()}
    assert os.getpid() not in found[4:]


def test_no_more_is_read_ahead_than_keeps_the_processes_busy() -> None:
    read = []

    def stream() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    results = ordered_map(slow_first, stream(), 2)
    next(results)
    assert len(read) <= 6
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_of_the_work_is_the_callers(processes: int) -> None:
    results = ordered_map(fail_at_three, range(100), processes)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is odd"):
        next(results)


def test_a_process_that_is_killed_is_an_error_and_no_wait() -> None:
    with pytest.raises(ChildProcessError, match=r"tokenizes row \d, or later rows, was ended .* memory is short"):
        list(ordered_map(end_at_three, range(100), 2, "row {}".format))


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM")
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        list(ordered_map(slow_first, range(3), 1))
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before


def test_the_processes_end_with_a_parent_that_is_killed() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        for _, process in ordered_map(slow_first, iter(int, 1), 2):
            os.write(writing, f"{process}\n".encode())
            if process != os.getpid():
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    process = int(os.read(reading, 100).split()[0])
    deadline = time.monotonic() + 10
    while _lives(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _lives(process)


def _lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


READINGS = [ParsedRow(()) for _ in range(5)]


def test_a_person_at_a_terminal_sees_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_PROGRESS_EVERY", 2)
    out = io.StringIO()
    assert (
        list(with_progress(READINGS, "reading a.jsonl", Console(file=out, force_terminal=True, width=200))) == READINGS
    )
    assert "reading a.jsonl: 4 rows" in out.getvalue()


def test_nobody_else_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress(READINGS, "reading")) == list(without_progress(READINGS, "reading")) == READINGS
    assert capfd.readouterr() == ("", "")
