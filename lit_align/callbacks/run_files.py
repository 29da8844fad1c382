"""Files in a run's folder: metrics as JSON lines, predictions as JSON lines, figures of the last evaluation."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_align.compat.lightning import writes_files
from lit_align.evaluation.record import write_whole
from lit_align.modules import LitModule
from lit_align.modules.step_totals import run_data
from lit_align.types import PreferencePair


class MetricsFile(Logger):
    """Appends one line per report to ``metrics.jsonl``: the step and the values.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.jsonl"

    @property
    @override
    def name(self) -> str:
        return self.path.stem

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self.path.parent)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` beside the file describes the run."""


class Figures(Callback):
    """Draws figures of every evaluation into ``figures/`` of the run's folder, over those of the one before.

    An on-policy run draws ``matching.png``, the policy's preferences against those of the scores, on its own responses
    and on those of the dataset; a reward model draws ``reliability.png``. Rank zero draws what it has evaluated.
    Runs on pairs write ``margins.json``: counts of the reward margins by length, which ``compare`` shows.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero and isinstance(module, LitModule) and writes_files(trainer):
            folder = Path(trainer.default_root_dir) / "figures"
            module.draw_figures(folder)
            if any(bucket["pairs"] for bucket in module.margins.get("buckets", {}).values()):
                folder.mkdir(parents=True, exist_ok=True)
                content = json.dumps({"step": trainer.global_step, **module.margins})
                write_whole(folder / "margins.json", content + "\n")


class Predictions(BasePredictionWriter):
    """Writes one line per pair, in the data's order, to ``predictions.jsonl`` in the run's folder.

    A line holds prompt and responses, the predictions, and the data's other columns. A column with one of these names
    is renamed to ``data/<name>`` in all lines: ``data/margin`` is the row's own, ``margin`` the policy's.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._records: list[dict[str, Any]] = []

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self._records += prediction

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the records of all ranks, sort them, and write them on rank zero."""
        records = _gather_records(trainer, self._records)
        self._records = []
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        rows = run_data(trainer).rows["predict"]
        names = {"prompt", "chosen", "rejected", *(name for record in records for name in record)}
        with temporary.open("w", encoding="utf-8") as file:
            for record in sorted(records, key=lambda record: record["index"]):
                row = rows[record["index"]]
                line = {"index": record["index"], **texts_of(row), **_rename_columns(row.extra, names), **record}
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        temporary.replace(path)
        rank_zero_info(f"predictions of {len(records)} pairs: {path}")


def texts_of(row: PreferencePair) -> dict[str, Any]:
    """Return prompt and responses of a row by name, without responses that are not there.

    >>> texts_of(PreferencePair("Why?", "So.", None))
    {'prompt': 'Why?', 'chosen': 'So.'}
    """
    texts = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    return {name: text for name, text in texts.items() if text is not None}


def _rename_columns(columns: Mapping[str, Any], predictions: set[str]) -> dict[str, Any]:
    """Rename a row's columns that have the name of a prediction.

    >>> _rename_columns({"margin": 2, "source": "x"}, {"index", "margin"})
    {'data/margin': 2, 'source': 'x'}
    """
    renamed = {}
    for column, value in columns.items():
        name = column
        while name in predictions or (name != column and name in columns):
            name = f"data/{name}"
        renamed[name] = value
    return renamed


def _gather_records(trainer: Trainer, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return records
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, records)
    return [record for part in gathered for record in part]
