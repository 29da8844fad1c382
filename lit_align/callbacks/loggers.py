"""Loggers by short names, and how figures and samples reach each of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from lit_align.callbacks.run_files import MetricsFile
from lit_align.callbacks.tensorboard import RunTensorBoard

PROJECT = "lit_align"
"""Project of Weights & Biases, and experiment of MLflow, unless the environment names another."""


class RunCSV(CSVLogger):
    """Writes ``csv/version_<n>/metrics.csv`` into the run's folder, a new one each time that the run is started.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="csv", flush_logs_every_n_steps=1)

    @override
    @rank_zero_only
    def save(self) -> None:
        Path(self.log_dir).mkdir(parents=True, exist_ok=True)  # moving an earlier run aside removes empty ones
        super().save()


def run_loggers(choice: Any, folder: Path, settings: Mapping[str, Any], starts_anew: bool) -> list[Logger] | bool:
    """Return the loggers of a run: those that are named, and ``metrics.jsonl``, which other commands read.

    Args:
        choice: value of ``trainer.logger``: short names, loggers, or a list of both; None and True for TensorBoard,
            False for no logger at all.
        folder: of the run.
        settings: of the run, as in ``config.yaml``.
        starts_anew: whether the run goes on from no checkpoint.
    """
    if choice is False:
        return False
    choices = ["tensorboard"] if choice is None or choice is True else choice
    loggers: list[Logger] = []
    for each in choices if isinstance(choices, list | tuple) else [choices]:
        match each:
            case "tensorboard":
                loggers.append(RunTensorBoard(folder, settings, starts_anew))
            case "csv":
                loggers.append(RunCSV(folder))
            case "wandb":
                name = os.environ.get("WANDB_NAME", folder.resolve().name)
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                loggers.append(WandbLogger(name=name, save_dir=folder, project=project))
            case "mlflow":
                loggers.append(_mlflow(folder.resolve()))
            case _:
                loggers.append(each)
    has_file = any(isinstance(logger, MetricsFile) for logger in loggers)
    return loggers if has_file else [*loggers, MetricsFile(folder)]


def _mlflow(folder: Path) -> MLFlowLogger:
    """Return a logger to the store of the environment, or else to a database and files in the run's folder."""
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    store = os.environ.get("MLFLOW_TRACKING_URI")
    if store is not None:
        return MLFlowLogger(experiment, folder.name, store)
    folder.mkdir(parents=True, exist_ok=True)
    files = (folder / "mlflow").as_uri()
    return MLFlowLogger(experiment, folder.name, f"sqlite:///{folder / 'mlflow.db'}", artifact_location=files)


def show_figures(logger: Logger, folder: Path, step: int) -> None:
    """Send the PNG files of a folder to a logger that shows images; others leave them where they are.

    Args:
        logger: of the run.
        folder: of the figures.
        step: optimizer steps so far.
    """
    from matplotlib.image import imread

    for path in sorted(folder.glob("*.png")):
        name = f"figures/{path.stem}"
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, imread(path)[..., :3], step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path), f"figures/{step}")


def show_texts(logger: Logger, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int) -> None:
    """Send a table of texts to a logger that shows one, under the name ``samples``.

    Args:
        logger: of the run.
        columns: their titles.
        rows: of as many texts.
        step: optimizer steps so far.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text("samples", texts_as_markdown(columns, rows), step)
    elif isinstance(logger, WandbLogger):
        logger.log_table("samples", list(columns), [list(row) for row in rows], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, texts_as_markdown(columns, rows), f"samples/{step}.md")


def texts_as_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a table in Markdown, in whose cells texts stay as they are.

    >>> texts_as_markdown(["a", "b"], [["x|y", "1\n2"]])
    '| a | b |\n|---|---|\n| x\\|y | 1<br>2 |'
    """
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(_escaped(text) for text in row) + " |" for row in rows)])


def _escaped(text: str) -> str:
    """Escape a text so that it stays inside one cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
