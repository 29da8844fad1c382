from __future__ import annotations

import io

import pytest
from rich.console import Console

from lit_align.data.formats.base import ParsedRow
from lit_align.data.prepared import workers as progress
from lit_align.data.prepared.workers import with_progress, without_progress

READINGS = [ParsedRow(()) for _ in range(5)]


def test_a_person_at_a_terminal_sees_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PROGRESS_EVERY", 2)
    out = io.StringIO()
    assert (
        list(with_progress(READINGS, "reading a.jsonl", Console(file=out, force_terminal=True, width=200))) == READINGS
    )
    assert "reading a.jsonl: 4 rows" in out.getvalue()


def test_nobody_else_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(with_progress(READINGS, "reading")) == list(without_progress(READINGS, "reading")) == READINGS
    assert capfd.readouterr() == ("", "")
