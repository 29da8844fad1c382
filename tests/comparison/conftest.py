"""Three runs: two that differ in the seed, and one of another β."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.comparison.runs import Run, find_runs, read_runs
from tests.comparison.folders import write_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    write_run(folder / "a-0", [[1, 1, 1, 1], [2, 2, 3, 3], [2, 4, 3, 1]], [20, 30, 40])
    write_run(folder / "a-1", [[1, 1, 1, 1], [2, 1, 2, 2], [3, 3, 3, 2]], [20, 24, 28], seed=1)
    write_run(folder / "b", [[1, 1, 1, 1], [0, 1, 0, 1], [5, 3, 4, 4]], [20, 19, 45], beta=0.5)
    write_run(folder / "b" / "previous" / "1", [[1, 1, 1, 1]], [20])
    return folder


@pytest.fixture
def runs(sweep: Path) -> list[Run]:
    return read_runs(find_runs([sweep]))
