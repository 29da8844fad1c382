"""The table of a sweep against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lit_align.sweep.grid import Cell
from lit_align.sweep.table import SeedMean, choose_metrics, write_tables


def cell_with(folder: Path, setting: str, seed: int, **values: float) -> Cell:
    run = folder / f"{setting}-seed={seed}"
    run.mkdir()
    lines = [{"step": 5, **{name: 0.0 for name in values}}, {"step": 10, **values}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Cell(setting, seed, {"model.objective": setting}, run, ())


def test_the_interval_is_that_of_scipy() -> None:
    values = [0.3, 0.9, 0.4, 0.35]
    wanted = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    mean = SeedMean.of(dict(enumerate(values)))
    assert (mean.mean, mean.low, mean.high) == pytest.approx((np.mean(values), *wanted))


def test_last_values_by_setting(tmp_path: Path) -> None:
    cells = [cell_with(tmp_path, "dpo", seed, score=score) for seed, score in ((0, 1.0), (1, 2.0), (2, 6.0))]
    cells += [cell_with(tmp_path, "ipo", 0, score=4.0, other=1.0), cell_with(tmp_path, "ipo", 1, score=5.0)]
    names = [cell.name for cell in cells[:-1]]
    table = write_tables(tmp_path, cells, names, {cells[-1].name: tmp_path / "log.txt"}, ["score", "other"])
    mean = SeedMean.of({0: 1.0, 1: 2.0, 2: 6.0})
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["settings"][0] == {
        "setting": "dpo",
        "values": {"model.objective": "dpo"},
        "seeds": [0, 1, 2],
        "metrics": {"score": {**vars(mean), "values": {"0": 1.0, "1": 2.0, "2": 6.0}}},
    }
    assert content["settings"][1]["seeds"] == [0]  # what failed does not count
    assert content["settings"][1]["metrics"]["score"]["low"] is None
    assert [cell["state"] for cell in content["cells"]] == ["finished"] * 4 + ["failed"]
    assert table.splitlines()[2].split("|")[1:4] == [" dpo     ", " 3     ", " 3.0 ± 6.6 "]
    assert table.splitlines()[3].split("|")[1:4] == [" ipo     ", " 1     ", " 4         "]
    text = (tmp_path / "sweep.md").read_text()
    assert table in text
    assert "- failed: ipo-seed=1" in text


def test_digits_follow_the_interval() -> None:
    assert str(SeedMean(1234.5, 1100.0, 1369.0, {})) == "1234 ± 134"
    assert str(SeedMean(0.123456, 0.121, 0.125912, {})) == "0.1235 ± 0.0025"
    assert str(SeedMean(2.0, 2.0, 2.0, {})) == "2.000 ± 0.000"
    assert str(SeedMean(2.54321, None, None, {})) == "2.54"


def test_metrics_that_no_run_reports() -> None:
    with pytest.raises(ValueError, match=r"--metrics val/los: no run of the sweep has reported that; did you mean"):
        choose_metrics(["val/los"], ["val/loss", "step"])
    assert choose_metrics([], ["val/loss", "train/loss"]) == ["val/loss"]
