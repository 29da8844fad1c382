"""Figures are drawn from the third validation on, as files and as images in TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.callbacks.training_figures import ONLINE_PANELS, PANELS, draw_curves, draw_training
from lit_align.comparison.runs import Curve
from lit_align.metrics.margins import MarginsByLength
from lit_align.metrics.pair_values import PAIR_METRICS
from lit_align.metrics.pairs import CORRELATION
from lit_align.metrics.rollouts import REPORTED_METRICS
from tests.runner import BASE, QUIET, lit_align, ok

NAMES = ("calibration", "curves", "length_score", "margins")


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps with a validation behind each."""
    folder = tmp_path_factory.mktemp("figures") / "run"
    words = ("--data.train", rows, "--data.validation", rows, "--data.batch_size", 2, "--trainer.max_steps", 3)
    words += ("--trainer.val_check_interval", 1, "--samples.count", 2, "--samples.sampling.max_new_tokens", 4)
    words += ("--model.objective", "dpo", "--export.form", "none")
    ok(lit_align("fit", "--run", folder, *BASE, *QUIET, *words, figures=True))
    return folder


def test_a_run_shows_its_figures_in_tensorboard(run: Path) -> None:
    assert sorted(path.stem for path in (run / "figures").glob("*.png")) == [
        "calibration",
        "curves",
        "length_score",
        "margins",
    ]
    events = EventAccumulator(str(run))
    events.Reload()
    assert sorted(events.Tags()["images"]) == [f"figures/{name}" for name in NAMES]
    assert [event.step for event in events.Images("figures/curves")] == [3]


def test_the_margins_are_those_of_the_validation(run: Path, rows: Path) -> None:
    """Counts and accuracy by length agree with the metrics of the same validation, which are computed elsewhere."""
    margins = json.loads((run / "figures" / "margins.json").read_text("utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = next(line for line in reversed(lines) if "val/loss" in line)
    assert margins["step"] == last["step"] == 3
    pairs = len(rows.read_text("utf-8").splitlines())
    assert sum(bucket["pairs"] for bucket in margins["buckets"].values()) == pairs
    for name, bucket in margins["buckets"].items():
        assert bucket["pairs"] / pairs == pytest.approx(last[f"val/lengths/chosen_is/{name}"])
        assert sum(bucket["counts"]) == bucket["pairs"]
        if bucket["pairs"]:
            assert bucket["won"] / bucket["pairs"] == pytest.approx(last[f"val/rewards/accuracies/chosen_{name}"])


def test_the_environment_is_written(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    assert environment["torch"] == torch.__version__
    assert environment["processes"] == "1"


def test_every_panel_shows_metrics_that_exist() -> None:
    assert {name for _, lines in PANELS for name in lines} <= {*PAIR_METRICS, CORRELATION}
    assert {name for _, lines in ONLINE_PANELS for name in lines} <= {*REPORTED_METRICS, "matching/d2"}


def test_the_lines_are_the_curves() -> None:
    curves: dict[str, Curve] = {
        "train/loss": {1: 3.0, 2: 2.0},
        "val/loss": {2: 2.5},
        "val/rewards/accuracies": {2: 0.5},
    }
    loss, *others = draw_curves("a_$run$", curves).axes
    assert [line.get_xydata().tolist() for line in loss.lines] == [[[1, 3.0], [2, 2.0]], [[2, 2.5]]]
    assert [len(axes.lines) for axes in others] == [2, 1, 2, 2, 1]


@pytest.mark.slow
def test_without_samples_and_margins_there_are_curves_alone(tmp_path: Path) -> None:
    files = draw_training(tmp_path / "figures", "run", {"val/loss": {1: 1.0, 2: 2.0}}, MarginsByLength().compute())
    assert [path.name for path in files] == ["curves.png"]
