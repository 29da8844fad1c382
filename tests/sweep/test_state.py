"""Which cells have to be run, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.sweep import state as module
from lit_align.sweep.state import begin_cell, code_version, finish_cell, identify_cell, state_of


def test_a_cell_from_start_to_finish(tmp_path: Path) -> None:
    identity = identify_cell(["--model.optimizer.lr", "1e-3"], True)
    assert state_of(tmp_path, identity).kind == "start"
    begin_cell(tmp_path, identity, moves_aside=False)
    assert state_of(tmp_path, identity).kind == "start"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=5.ckpt").touch()
    assert state_of(tmp_path, identity).kind == "resume"
    finish_cell(tmp_path, identity, 1.0)
    assert state_of(tmp_path, identity).kind == "finished"


def test_what_makes_a_finished_cell_start_anew(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}\n")
    words = ["--model.optimizer.lr", "1e-3", "--data.train", str(data)]
    run = tmp_path / "run"
    identity = identify_cell(words, True)
    finish_cell(run, identity, 1.0)
    reasons = {
        "model.optimizer.lr was 0.001 and is 0.002": identify_cell([*words, "--model.optimizer.lr", "2e-3"], True),
        "share_reference was True and is False": identify_cell(words, False),
        "lit_align or a library has changed since": {**identity, "code": "other"},
    }
    for reason, other in reasons.items():
        assert state_of(run, other).kind == "anew"
        assert state_of(run, other).reason == reason
    data.write_text("{}\n{}\n")
    module._of_file.cache_clear()
    assert state_of(run, identify_cell(words, True)).reason == f"the content of {data} has changed"


def test_what_an_earlier_run_left_is_moved_aside_before_the_note_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, the next start must not take the old checkpoint for one of the new settings."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=5.ckpt").write_text("old")
    identity = identify_cell(["--model.optimizer.lr", "1e-3"], True)
    assert state_of(tmp_path, identity).reason == "the folder holds a run of no sweep"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_cell(tmp_path, identity, moves_aside=True)
    assert state_of(tmp_path, identity).kind == "start"
    assert (tmp_path / "previous" / "1" / "checkpoints" / "step=5.ckpt").read_text() == "old"


def test_options_of_a_class_that_was_replaced_do_not_count() -> None:
    words = ["--model.objective", "dpo", "--model.objective.beta", "0.3", "--model.objective", "ipo", "--run", "x"]
    assert identify_cell(words, True)["settings"] == {"model.objective": "ipo", "share_reference": True}


def test_the_version_of_the_code_is_that_of_what_runs_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lit_align"
    for name in ("modules/a.py", "sweep/state.py", "comparison/page.py"):
        (package / name).parent.mkdir(parents=True)
        (package / name).write_text("1")
    monkeypatch.setattr(module, "__file__", str(package / "sweep" / "state.py"))
    versions = []
    for name in ("sweep/state.py", "comparison/page.py", "modules/a.py"):
        code_version.cache_clear()
        versions.append(code_version())
        (package / name).write_text("2")
    code_version.cache_clear()
    versions.append(code_version())
    code_version.cache_clear()
    assert versions[0] == versions[1] == versions[2] != versions[3]
