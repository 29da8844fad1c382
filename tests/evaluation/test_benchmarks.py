from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_align.evaluation.benchmarks import PAPER, BenchmarkTask, _estimate, benchmark_metrics, benchmark_tasks
from lit_align.evaluation.intervals import resamples
from lit_align.evaluation.models import LoadedModel

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS = [
    {"question": "She keeps", "choices": ["hens", "Latin"], "answer": 0},
    {"question": "He speaks", "choices": ["Latin", "hens"], "answer": 0},
    {"question": "She drinks", "choices": ["wolves", "cocoa"], "answer": 1},
    {"question": "He plays", "choices": ["tuba", "tarts"], "answer": 1},
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    data, path = tmp_path / "rows.jsonl", tmp_path / "facts.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    path.write_text(TASK.format(name="facts", data=data))
    return path


@torch.no_grad()
def by_hand(loaded: LoadedModel) -> float:
    """Accuracy of the choice with the higher log-probability behind the question."""
    right, tokenizer = [], loaded.encoder.tokenizer
    for row in ROWS:
        values = []
        for choice in row["choices"]:
            before = tokenizer(row["question"])["input_ids"]
            whole = tokenizer(f"{row['question']} {choice}")["input_ids"]
            logits = loaded.model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            values.append(sum(float(logits[place - 1, whole[place]]) for place in range(len(before), len(whole))))
        right.append(int(np.argmax(values)) == row["answer"])
    return float(np.mean(right))


@pytest.mark.long
def test_a_task_of_ones_own_runs_offline(
    testbed_model: LoadedModel, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = benchmark_tasks(str(task), fewshot=0)
    metrics = benchmark_metrics(testbed_model, tasks, tmp_path / "rows", batch_size=2, count=50)
    number = metrics["benchmark/facts/acc"]
    assert number.value == by_hand(testbed_model)
    assert number.n == 4
    assert number.low is not None
    monkeypatch.setattr("lit_align.evaluation.benchmarks._run", lambda *rest: pytest.fail("computed again"))
    assert benchmark_metrics(testbed_model, tasks, tmp_path / "rows", batch_size=2, count=50) == metrics
    monkeypatch.undo()
    with pytest.raises(ValueError, match="no_such_task"):
        benchmark_metrics(testbed_model, [BenchmarkTask("no_such_task")], tmp_path / "rows")


@pytest.mark.long
def test_an_interrupted_task_goes_on_with_the_answers_that_are_missing(
    testbed_model: LoadedModel, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = benchmark_tasks(str(task), fewshot=0)
    calls: list[int] = []

    def counted(module: object, args: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    handle = testbed_model.model.register_forward_pre_hook(counted)
    try:
        with pytest.raises(KeyboardInterrupt):
            benchmark_metrics(testbed_model, tasks, tmp_path / "rows", batch_size=2, count=50)
        assert list((tmp_path / "rows" / "unfinished").iterdir())
        metrics = benchmark_metrics(testbed_model, tasks, tmp_path / "rows", batch_size=2, count=50)
    finally:
        handle.remove()
    assert metrics["benchmark/facts/acc"].value == by_hand(testbed_model)
    assert len(calls) == 2 + 1, "two batches, of which the answers to one were there"
    assert not (tmp_path / "rows" / "unfinished").exists()


@pytest.mark.long
def test_a_group_has_an_interval_from_the_errors_of_its_tasks(
    testbed_model: LoadedModel, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MMLU has; the standard error of the rows of both tasks together, by hand."""
    pytest.importorskip("lm_eval", reason="needs the extra `benchmarks`")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (task.parent / "more.yaml").write_text(task.read_text().replace("task: facts", "task: more"))
    group = task.parent / "both.yaml"
    group.write_text(
        "group: both\ntask:\n  - facts\n  - more\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    metrics = benchmark_metrics(testbed_model, benchmark_tasks(str(group), fewshot=0), tmp_path / "rows")
    number, share = metrics["benchmark/both/acc"], by_hand(testbed_model)
    assert (number.value, number.n) == (pytest.approx(share), 8)
    variance = share * (1 - share) * 4 / 3  # of the rows of a task, of which there are four
    assert number.low == pytest.approx(share - 1.96 * (variance / 8) ** 0.5)
    assert number.high == pytest.approx(share + 1.96 * (variance / 8) ** 0.5)


def test_names_files_and_presets_are_tasks(task: Path, tmp_path: Path) -> None:
    assert benchmark_tasks(f"arc_easy, {task}") == [
        BenchmarkTask("arc_easy"),
        BenchmarkTask("facts", None, str(task.parent)),
    ]
    assert {t.name: t.fewshot for t in benchmark_tasks("paper")} == PAPER
    assert {t.fewshot for t in benchmark_tasks("paper", fewshot=0)} == {0}
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        benchmark_tasks(str(tmp_path / "none.yaml"))
    task.write_text("group: both\ntask:\n  - facts\n  - more\n")
    assert benchmark_tasks(str(task))[0].name == "both"
    task.write_text("tag: x\n")
    with pytest.raises(ValueError, match="no line 'task: NAME' or 'group: NAME'"):
        benchmark_tasks(str(task))


def test_intervals_are_over_rows_or_from_the_harness_own_error() -> None:
    rows = _estimate(0.5, [0, 1, 1, 0], 0.9, 100, 4)
    ends = np.percentile(
        [np.mean([(0, 1, 1, 0)[row] for row in drawn]) for drawn in resamples(4, 1, 100)[0]], [2.5, 97.5]
    )
    assert (rows.low, rows.high, rows.n) == pytest.approx((*ends, 4))
    other = _estimate(0.5, [], 0.1, 100, 57)
    assert (other.low, other.high, other.n) == pytest.approx((0.304, 0.696, 57))
    assert _estimate(0.5, [], "N/A", 100, 0).low is None
