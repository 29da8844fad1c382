"""Loggers by short names. ``wandb`` and ``mlflow`` are stand-ins at the border of these packages."""

from __future__ import annotations

import csv
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger, mlflow, wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.callbacks import MetricsFile, RunTensorBoard, run_loggers
from lit_align.callbacks.loggers import show_figures, show_texts
from lit_align.cli.early_checks import check_command_line

SETTINGS = {"task": "preference", "model": {"policy": "x"}}
FIT = ("fit", "--model.policy", "testbed:policy", "--data.train", "testbed:train", "--model.objective", "dpo")


def named(choice: Any, folder: Path) -> list[Logger]:
    loggers = run_loggers(choice, folder, SETTINGS, True)
    assert isinstance(loggers, list)
    return loggers


class Calls:
    """Records every call, under the name of the method."""

    def __init__(self) -> None:
        self.made: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.made.append((name, args, kwargs))

    def of(self, name: str) -> list[Any]:
        return [args for made, args, _ in self.made if made == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Weights & Biases, whose run records what it is given."""
    calls = Calls()
    calls.config = Calls()

    def start(**settings: Any) -> Calls:
        calls.made.append(("init", (), settings))
        return calls

    stand_in(monkeypatch, "wandb", run=None, init=start, Image=lambda path: ("image", path), Table=lambda **made: made)
    stand_in(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    stand_in(monkeypatch, "wandb.sdk")
    stand_in(monkeypatch, "wandb.wandb_run", Run=Calls)
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", True)
    return calls


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """MLflow, whose client records what it is given."""
    calls = Calls()
    calls.uri = []
    made = SimpleNamespace(info=SimpleNamespace(run_id="7", experiment_id="1"))
    calls.create_run, calls.get_experiment_by_name = lambda **_: made, lambda name: None
    calls.create_experiment = lambda **_: "1"

    class Plain(SimpleNamespace):
        """A record that is built from its fields."""

    stand_in(monkeypatch, "mlflow", set_tracking_uri=calls.uri.append)
    stand_in(monkeypatch, "mlflow.tracking", MlflowClient=lambda uri: calls)
    stand_in(monkeypatch, "mlflow.entities", Metric=Plain, Param=Plain)
    stand_in(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(mlflow, "_get_resolve_tags", lambda: lambda tags: tags)
    return calls


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    from matplotlib.image import imsave

    folder = tmp_path / "figures"
    folder.mkdir()
    imsave(folder / "curves.png", [[[0.0, 0.5, 1.0]] * 4] * 4)
    return folder


def test_the_default_and_several_names(tmp_path: Path) -> None:
    assert [type(logger).__name__ for logger in named(None, tmp_path)] == ["RunTensorBoard", "MetricsFile"]
    assert [type(logger).__name__ for logger in named(["csv", "tensorboard"], tmp_path)] == [
        "RunCSV",
        "RunTensorBoard",
        "MetricsFile",
    ]
    own = MetricsFile(tmp_path)
    assert named(own, tmp_path) == [own]
    assert run_loggers(False, tmp_path, SETTINGS, True) is False


def test_csv_has_a_file_per_start(tmp_path: Path) -> None:
    for start in range(2):
        (logger, _) = named("csv", tmp_path)
        logger.log_metrics({"train/loss": 0.5}, 10)
        logger.log_metrics({"train/loss": 0.4, "val/loss": 0.6}, 20)
        with (tmp_path / "csv" / f"version_{start}" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [row["train/loss"] for row in rows] == ["0.5", "0.4"]
        assert [row["val/loss"] for row in rows] == ["", "0.6"]


def test_tensorboard_shows_figures_and_texts(tmp_path: Path, figures: Path) -> None:
    (logger, _) = named("tensorboard", tmp_path / "run")
    assert isinstance(logger, RunTensorBoard)
    show_figures(logger, figures, 3)
    show_texts(logger, ["prompt", "policy"], [["a|b", "c\nd"]], 3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["images"] == ["figures/curves"]
    (table,) = events.Tensors("samples/text_summary")
    assert table.tensor_proto.string_val[0].decode().endswith("| a\\|b | c<br>d |")


def test_wandb_gets_numbers_figures_and_texts(tmp_path: Path, figures: Path, run: Calls, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (logger, _) = named("wandb", tmp_path / "run")
    assert isinstance(logger, WandbLogger)
    logger.log_metrics({"train/loss": 0.5}, 10)
    show_figures(logger, figures, 10)
    show_texts(logger, ["prompt", "policy"], [["a", "b"]], 10)
    logged = {name: value for (values,) in run.of("log") for name, value in values.items()}
    assert logged["train/loss"] == 0.5
    assert logged["figures/curves"] == [("image", str(figures / "curves.png"))]
    assert logged["samples"] == {"columns": ["prompt", "policy"], "data": [["a", "b"]], "dataframe": None}
    ((_, _, started),) = [call for call in run.made if call[0] == "init"]
    assert (started["project"], started["name"]) == ("mine", "run")


def test_mlflow_gets_numbers_figures_and_texts(tmp_path: Path, figures: Path, client: Calls) -> None:
    (logger, _) = named("mlflow", tmp_path / "run")
    assert isinstance(logger, MLFlowLogger)
    logger.log_metrics({"train/loss": 0.5}, 10)
    show_figures(logger, figures, 10)
    show_texts(logger, ["prompt"], [["a"]], 10)
    assert client.uri == [f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"]
    assert client.of("log_artifact") == [("7", str(figures / "curves.png"), "figures/10")]
    assert client.of("log_text") == [("7", "| prompt |\n|---|\n| a |", "samples/10.md")]
    ((_, _, batch),) = [call for call in client.made if call[0] == "log_batch"]
    assert [(metric.key, metric.value, metric.step) for metric in batch["metrics"]] == [("train/loss", 0.5, 10)]


@pytest.mark.parametrize("choice", ["wanbd", "[csv, wanbd]"])
def test_an_unknown_name_is_one_sentence(choice: str) -> None:
    (mistake,) = check_command_line([*FIT, "--trainer.logger", choice])
    assert mistake.startswith("trainer.logger names 'wanbd'; expected csv, mlflow, tensorboard, wandb, a list of")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.cli.settings.find_spec", lambda name: None)
    (mistake,) = check_command_line([*FIT, "--trainer.logger", "mlflow"])
    assert mistake == "trainer.logger mlflow needs a package that is not installed: pip install mlflow"


def test_names_that_are_known_pass() -> None:
    for choice in ("csv", "[csv, tensorboard]", "CSVLogger", "false"):
        assert check_command_line([*FIT, "--trainer.logger", choice]) == []


def test_other_loggers_are_left_alone(tmp_path: Path, figures: Path) -> None:
    logger = MetricsFile(tmp_path)
    show_figures(logger, figures, 1)
    show_texts(logger, ["prompt"], [["a"]], 1)
    assert not isinstance(logger, TensorBoardLogger)
    assert not logger.path.exists()
