"""The log files of a resumed run contain every step exactly once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.callbacks.checkpointing.log_truncation import truncate_log
from tests.runner import BASE, SHORT, lit_align, metrics, ok


def test_lines_behind_the_step_move_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step}) for step in (None, 1, 2, 2, 3)] + ['{"step": 4, "cut sh']
    path.write_text("\n".join(lines))
    assert truncate_log(path, 2) == 2
    assert path.read_text().splitlines() == lines[:4]
    (aside,) = (tmp_path / "previous").iterdir()
    assert aside.read_text().splitlines() == lines
    assert truncate_log(path, 2) == 0
    assert truncate_log(tmp_path / "nowhere.jsonl", 2) == 0


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x1d"])
def test_texts_with_line_separators_are_one_line(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": step, "policy": f"a{mark}b"}, ensure_ascii=False) + "\n" for step in (0, 2, 4, 6)]
    path.write_bytes("".join(lines).encode())
    assert truncate_log(path, 4) == 1
    assert path.read_bytes().decode() == "".join(lines[:3])


@pytest.mark.resume("counters and the files of a run, from an older checkpoint")
@pytest.mark.fault("D01c")
def test_going_on_from_an_older_checkpoint_tells_every_step_once(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows),
        *("--data.batch_size", 2, "--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1),
        *("--trainer.max_steps", 5),
    )
    ok(lit_align(*words))
    first = metrics(run)
    ok(lit_align(*words, "--ckpt_path", run / "checkpoints" / "step=2.ckpt"))
    (aside,) = (run / "previous").iterdir()
    assert len(aside.read_text("utf-8").splitlines()) == 5
    assert metrics(run) == first
    shown = EventAccumulator(str(run))
    shown.Reload()
    assert [event.step for event in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5]
