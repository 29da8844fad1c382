from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from lit_align.errors import DataError
from lit_align.evaluation.record import (
    EvaluationRecord,
    MetricEstimate,
    ModelRecord,
    append_jsonl,
    drop_cut_line,
    locked,
    model_folder,
    read_evaluation,
    read_jsonl,
    write_evaluation,
    write_jsonl,
)


def an_evaluation(folder: Path) -> EvaluationRecord:
    metrics = {"win_rate": MetricEstimate(0.6, 0.5, 0.7, 12), "length/tokens": MetricEstimate(31.5)}
    model = ModelRecord("ours", "runs/ours", {"seeds": [0, 1]}, metrics, model_folder(folder, "ours"))
    return EvaluationRecord((model,), "base", ("lengths hardly overlap",))


def test_an_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = an_evaluation(tmp_path)
    path = write_evaluation(tmp_path, record)
    assert read_evaluation(tmp_path) == record
    assert read_evaluation(path) == record


def test_rows_of_a_model_are_read_from_its_folder(tmp_path: Path) -> None:
    write_evaluation(tmp_path, an_evaluation(tmp_path))
    rows = [{"index": 0, "seed": 0, "response": "a\u2028b"}, {"index": 1, "seed": 0, "response": "ü"}]
    write_jsonl(model_folder(tmp_path, "ours") / "responses.jsonl", rows)
    model = read_evaluation(tmp_path).models[0]
    assert model.responses() == rows
    assert model.scores() == []


def test_a_line_that_was_cut_is_left_out_and_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"index": 0}\n{"ind')
    assert list(read_jsonl(path)) == [{"index": 0}]
    drop_cut_line(path)
    append_jsonl(path, [{"index": 1}])
    assert list(read_jsonl(path)) == [{"index": 0}, {"index": 1}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"index": 0}\nnonsense\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: not JSON"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "expected an evaluation of format 1"), ('{"format": 9}', "found 9")],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_evaluation(tmp_path)


def test_a_file_without_a_key_is_refused_by_name(tmp_path: Path) -> None:
    content = json.loads(write_evaluation(tmp_path, an_evaluation(tmp_path)).read_text())
    del content["models"][0]["metrics"]["win_rate"]["value"]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged.*value"):
        read_evaluation(tmp_path)


def test_a_missing_evaluation_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="python -m lit_align evaluate"):
        read_evaluation(tmp_path)


def test_numbers_are_finite() -> None:
    with pytest.raises(ValueError, match="low is nan"):
        MetricEstimate(1.0, float("nan"), 2.0, 3)


def test_commands_that_share_a_model_compute_its_rows_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = []

    def second() -> None:
        with locked(tmp_path / "base"):
            order.append("second")

    with locked(tmp_path / "base"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert capsys.readouterr().err == "base: another command evaluates it; this one waits\n"
