"""What TensorBoard is given: curves of what changes, a layout, settings, and runs by the names of their folders."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lit_align.callbacks.evaluation import TrainingEvaluation
from lit_align.callbacks.tensorboard import (
    CONSTANTS,
    EVALUATION_LAYOUT,
    HPARAM_METRICS,
    LAYOUTS_OF_TASKS,
    RunTensorBoard,
    layout_of,
)
from lit_align.cli.keys import MODULES
from lit_align.cli.run_setup import MoveAside, run_files
from lit_align.metrics.pair_values import PAIR_METRICS

SETTINGS = {
    "task": "preference",
    "run": "x",
    "model": {"objective": {"class_path": "lit_align.objectives.dpo", "init_args": {"beta": 0.5}}, "lora": None},
    "data": {"train": "hf_abcdefghijklmnopqrstuv", "batch_size": 8, "cache": "auto"},
}


@pytest.fixture
def events(tmp_path: Path) -> EventAccumulator:
    logger = RunTensorBoard(tmp_path / "run", SETTINGS)
    for step, loss in ((1, 0.7), (2, 0.6)):
        logger.log_metrics({"val/loss": loss, "val/lengths/gap": 5.25, "samples/reference/score": 2.0}, step)
    logger.finalize("success")
    found = EventAccumulator(str(tmp_path / "run"))
    found.Reload()
    return found


def test_event_files_lie_in_the_run_s_folder_alone(events: EventAccumulator, tmp_path: Path) -> None:
    (file,) = (tmp_path / "run").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert list(GetLogdirSubdirectories(str(tmp_path))) == [str(tmp_path / "run")]


def test_what_never_changes_is_a_table(events: EventAccumulator) -> None:
    assert events.Tags()["scalars"] == ["val/loss"]
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("val/loss")] == [(1, 0.7), (2, 0.6)]
    (table,) = events.Tensors("constants/text_summary")
    expected = "| metric | value |\n|---|---|\n| val/lengths/gap | 5.25 |\n| samples/reference/score | 2 |"
    assert table.tensor_proto.string_val[0].decode() == expected


def test_only_properties_of_data_and_reference_are_constants() -> None:
    names = {name for name in PAIR_METRICS if CONSTANTS.fullmatch(f"val/{name}")}
    lengths = {name for name in PAIR_METRICS if name.startswith("lengths/")}
    assert names == lengths
    assert not any(CONSTANTS.fullmatch(f"train/{name}") for name in PAIR_METRICS)
    assert not CONSTANTS.fullmatch("val/lengths/margin_correlation")


def test_settings_are_hyperparameters(events: EventAccumulator) -> None:
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert set(given) == {"task", "model.objective", "model.objective.beta", "data.train", "data.batch_size"}
    assert given["model.objective"].string_value == "dpo"
    assert given["model.objective.beta"].number_value == 0.5
    assert "abcdefghijkl" not in given["data.train"].string_value
    content = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == set(HPARAM_METRICS["preference"])


def test_the_layout_has_the_categories(events: EventAccumulator) -> None:
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUTS_OF_TASKS["preference"])
    tags = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
    assert "train/loss$" in tags
    assert all(tag.endswith("$") for tag in tags)


def test_there_are_charts_for_what_a_run_reports_alone() -> None:
    """An empty chart says nothing; a run that evaluates itself has charts of that."""
    layout = layout_of({**SETTINGS, "samples": {"count": 0}, "evaluation": {"prompts": "x", "judge": None}})
    assert list(layout) == [*(name for name in LAYOUTS_OF_TASKS["preference"] if name != "samples"), "evaluation"]
    assert list(layout["evaluation"]) == ["length (tokens)", "KL to the reference"]
    whole = layout_of({**SETTINGS, "evaluation": {"prompts": "x", "judge": "y", "pairs": "z", "tasks": "t"}})
    tags = [tag for charts in EVALUATION_LAYOUT.values() for own in charts.values() for tag in own]
    assert [tag for own in whole["evaluation"].values() for tag in own] == tags
    evaluation = TrainingEvaluation(prompts="x", judge="testbed", pairs="y", tasks="arc_easy")
    assert all(evaluation.reports(re.sub(r"[(].*[)][?]?|[.][*]", "", tag)) for tag in tags)


def test_every_task_has_a_layout() -> None:
    assert set(LAYOUTS_OF_TASKS) == set(HPARAM_METRICS) == set(MODULES)


def test_a_run_whose_events_lie_deeper_goes_on_there(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").mkdir()
    assert Path(RunTensorBoard(tmp_path, SETTINGS).log_dir) == tmp_path / "tensorboard"
    assert Path(RunTensorBoard(tmp_path, SETTINGS, starts_anew=True).log_dir) == tmp_path


class FakeTrainer:
    """What ``MoveAside`` asks of a trainer."""

    is_global_zero, global_step, fast_dev_run, loggers, barebones = True, 0, False, (), False


def test_tensorboard_does_not_find_a_run_that_was_moved_aside(events: EventAccumulator, tmp_path: Path) -> None:
    run = tmp_path / "run"
    name = next(run.iterdir()).name
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1}), "utf-8")
    aside = MoveAside(run, starts_anew=True)
    aside.on_fit_start(FakeTrainer(), None)
    assert list(GetLogdirSubdirectories(str(tmp_path))) == []
    assert (run / "previous" / "1" / name.replace("tfevents", "tf-events")).is_file()
    assert run_files(run) == []
    aside.on_exception(FakeTrainer(), None, RuntimeError())
    assert {path.name for path in run.iterdir()} == {name, "metrics.jsonl"}
