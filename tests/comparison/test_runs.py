"""What is read from run folders, and what is said about folders that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_align.comparison.runs import NotARunError, Run, find_runs, flatten, read_evaluations, read_run, short_names
from lit_align.errors import DataError
from lit_align.evaluation.record import EvaluationRecord, MetricEstimate, ModelRecord, write_evaluation


def test_a_sweep_is_all_of_its_cells_without_those_moved_aside(sweep: Path) -> None:
    assert [path.name for path in find_runs([sweep])] == ["a-0", "a-1", "b"]
    assert [path.name for path in find_runs([sweep / "b", sweep])] == ["b", "a-0", "a-1"]


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotARunError, match="nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotARunError, match=r"empty holds no run: neither config.yaml nor metrics.jsonl"):
        find_runs([tmp_path / "empty"])


def test_a_run_that_has_reported_nothing_is_named(sweep: Path) -> None:
    (sweep / "b" / "metrics.jsonl").unlink()
    with pytest.raises(NotARunError, match=r"b: metrics.jsonl is missing: the run has not reported anything yet"):
        read_run(sweep / "b")
    (sweep / "b" / "metrics.jsonl").write_text("")
    with pytest.raises(NotARunError, match=r"b: metrics.jsonl is empty"):
        read_run(sweep / "b")


def test_a_damaged_file_is_named_with_its_line(sweep: Path) -> None:
    path = sweep / "b" / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": \n{"step": 2, "loss": 1}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl:2: not JSON"):
        read_run(sweep / "b")
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert read_run(sweep / "b").curves == {"loss": {1: 1.0}}, "the last line of a run that was killed is left out"
    (sweep / "b" / "config.yaml").write_text("a: [1\n")
    with pytest.raises(DataError, match=r"config.yaml: not YAML"):
        read_run(sweep / "b")
    (sweep / "b" / "config.yaml").write_text("- 1\n")
    with pytest.raises(DataError, match=r"config.yaml: found a list; expected an object"):
        read_run(sweep / "b")


def test_what_is_missing_is_noted(sweep: Path) -> None:
    for name in ("samples.jsonl", "environment.json", "data.json"):
        (sweep / "b" / name).unlink()
    lines = (sweep / "b" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (sweep / "b" / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < 20))
    run = read_run(sweep / "b")
    assert run.notes == ["no data report", "no samples", "its environment is not known", "it stands at step 10 of 20"]
    (sweep / "b" / "config.yaml").unlink()
    assert "its settings are not known" in read_run(sweep / "b").notes


def test_names_tell_runs_apart(sweep: Path, runs: list[Run]) -> None:
    assert [run.name for run in runs] == ["a-0", "a-1", "b"]
    assert short_names([Path("/x/a"), Path("/y/x/a")]) == ["/x/a", "y/x/a"]


def test_settings_are_flat() -> None:
    part = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}}
    assert flatten({"model": {"optimizer": part, "lora": None}, "seed": 0, "list": [1, 2]}) == {
        "model.optimizer": "AdamW",
        "model.optimizer.lr": 0.1,
        "model.lora": None,
        "seed": 0,
        "list": [1, 2],
    }


def test_models_of_an_evaluation_belong_to_the_runs_they_lie_in(sweep: Path, runs: list[Run], tmp_path: Path) -> None:
    score = {"score": MetricEstimate(2.0, 1.5, 2.5, 10)}
    models = (
        ModelRecord("a", str(sweep / "a-0"), metrics=score),
        ModelRecord("b", str(sweep / "b" / "policy"), metrics=score),
        ModelRecord("base", "some/model", metrics=score),
    )
    write_evaluation(tmp_path / "evaluation", EvaluationRecord(models, "base", ("short",)))
    write_evaluation(sweep / "b" / "evaluation", EvaluationRecord((ModelRecord("b", str(sweep / "b")),)))
    found, warnings = read_evaluations([tmp_path / "evaluation"], runs)
    own = f"b ({sweep / 'b' / 'evaluation'})"
    assert [(model.name, model.run) for model in found] == [("a", "a-0"), ("b", "b"), ("base", None), (own, "b")]
    assert [model.is_baseline for model in found] == [False, False, True, False]
    assert warnings == ["short"]
