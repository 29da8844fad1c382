"""The section search: what it may say, and trials that are kept, resumed and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.sweep import command
from lit_align.sweep.grid import read_grid, searched_cells
from lit_align.sweep.search import Search, Trials, read_search
from lit_align.sweep.worker import Task

pytestmark = pytest.mark.slow

SPACE = {"model.optimizer.lr": {"low": 1e-5, "high": 1e-3, "log": True}, "data.batch_size": {"low": 2, "high": 8}}
SECTION = {"metric": "val/loss", "direction": "minimize", "trials": 5, "space": SPACE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "search.trials is 0; expected a whole number"),
        ({"direction": "up"}, "search.direction is 'up'; expected maximize or minimize"),
        ({"spaces": 1}, "expected the keys metric, direction, trials, space"),
        ({"space": {}}, "search.space is {}; expected keys of a run"),
        ({"space": {"a.b": [1, 2]}}, r"search.space.a.b is \[1, 2\]; expected {low"),
        ({"space": {"a.b": {"low": 2, "high": 1}}}, "search.space.a.b is"),
        ({"space": {"a.b": {"low": 1, "high": 2, "size": 1}}}, "search.space.a.b is"),
    ],
)
def test_mistakes_name_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_search(SECTION | change)


def test_trials_lie_in_the_space_and_interrupted_ones_come_again(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    search = read_search(SECTION)
    trials = Trials(search, tmp_path, ["base"])
    first, second = trials.ask(2)
    trials.tell(first, 0.5)
    again = Trials(search, tmp_path, ["base"])
    assert again.values == {first: 0.5}
    assert again.ask(2)[0] == second, "it was interrupted"
    for settings in again.all.values():
        assert 1e-5 <= settings["model.optimizer.lr"] <= 1e-3
        assert settings["data.batch_size"] in range(2, 9)
    again.tell(second, None)
    again.tell(2, 0.25)
    assert list(again.values) == [2, first], "the best first, without the failed one"
    assert [len(again.ask(9)), len(Trials(search, tmp_path, ["other"]).all)] == [2, 0]
    assert Trials(Search("m", "maximize", 9, SPACE), tmp_path, []).values == {}


def test_a_search_goes_on_to_its_last_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in its third trial; the value of a trial is the mean over its seeds."""
    pytest.importorskip("optuna")
    monkeypatch.setattr(
        "lit_align.sweep.command._report", lambda grid, failed, metrics: reports.append((grid, failed)) or 0
    )
    monkeypatch.setattr("lit_align.sweep.command._run_cells", lambda grid, tasks, parsed: run(tasks))
    reports: list[Any] = []
    ran: list[str] = []
    file = tmp_path / "grid.yaml"
    base = {"model.policy": "testbed:policy", "data.train": "testbed:train", "model.objective": "dpo"}
    file.write_text(yaml.safe_dump({"base": base, "run": str(tmp_path / "sweep"), "seeds": 2, "search": SECTION}))

    def run(tasks: Sequence[Task]) -> dict[str, Path]:
        for task in tasks:
            if len(ran) == 5:
                ran.append("interrupted")
                raise KeyboardInterrupt
            ran.append(task.name)
            task.folder.mkdir(parents=True, exist_ok=True)
            loss = task.identity["settings"]["model.optimizer.lr"] + task.identity["settings"]["seed_everything"]
            (task.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "val/loss": loss}))
            (task.folder / "metrics.jsonl").open("a").write("\n")
        return {}

    with pytest.raises(KeyboardInterrupt):
        command.main([str(file)])
    with pytest.raises(SystemExit) as ended:
        command.main([str(file)])
    assert ended.value.code == 0
    assert "5 trials in" in (out := capsys.readouterr().out)
    assert "of which 2 have finished" in out
    (grid, failed) = reports[0]
    assert (len(grid.cells), failed) == (10, {})
    rates = [cell.values["model.optimizer.lr"] for cell in grid.cells]
    assert rates == sorted(rates), "the best first: the loss is the rate and the seed"
    assert ran[4].startswith("trial=2-")
    assert ran.count(ran[4]) == 2, "the trial that was interrupted is run again, here from the start"
    search = read_grid(file)
    assert [cell.seed for cell in searched_cells(search, 7, {"model.optimizer.lr": 0.000123456})] == [0, 1]
    shutil.rmtree(tmp_path / "sweep")


def test_a_grid_has_either_axes_or_a_search(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({"base": {"a.b": 1}, "grid": {"a.c": [1]}, "search": SECTION}))
    with pytest.raises(ValueError, match="search and grid: expected one of the two"):
        read_grid(file)
