"""The compare command: help without torch, and one clear sentence for what cannot be compared."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_align.cli import main
from lit_align.interrupts import SIGNAL_NAMES
from tests.comparison.folders import write_run


def test_help_and_comparing_do_without_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [[1, 1, 1, 1], [2, 2, 3, 3]], [20, 30])
    words = [["compare", "--help"], ["compare", str(run), "--into", str(tmp_path / "out")]]
    code = f"""
import sys
from lit_align.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m lit_align compare" in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "out" / name) for name in ("compare.html", "compare.md")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder; expected the folder of a run or of a sweep"),
        (["."], "error: . holds no run: neither config.yaml nor metrics.jsonl is in it"),
        ([], "the following arguments are required: RUN"),
        (["a", "--samples", "-1"], "--samples -1: expected 0 or more"),
        (["a", "--evalution", "b"], "no such option: --evalution; did you mean --evaluation?"),
        (
            ["a", "--evaluation", "b"],
            "error: b/evaluation.json does not exist; python -m lit_align evaluate writes it",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "a" in words:
        write_run(tmp_path / "a", [[1, 1, 1, 1]], [20])
    with pytest.raises(SystemExit) as ended:
        main(["compare", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_any_command_without_a_traceback(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while libraries are imported, and in commands that have nothing to save."""
    before = {each: signal.getsignal(each) for each in SIGNAL_NAMES}
    monkeypatch.setattr("lit_align.cli.compare.compare", lambda *rest: signal.raise_signal(number))
    try:
        with pytest.raises(SystemExit) as ended:
            main(["compare", "run"])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert ended.value.code == code
