"""The runs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.comparison.runs import Run, find_runs, read_runs
from tests.comparison.folders import write_sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep")


@pytest.fixture
def runs(sweep: Path) -> list[Run]:
    return read_runs(find_runs([sweep]))
