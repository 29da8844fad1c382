"""Predictions as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from lit_align.modules.step_totals import run_data


class Predictions(BasePredictionWriter):
    """Writes one line per pair, in the data's order, to ``predictions.jsonl`` in the run's folder.

    The data's other columns stand beside what was predicted. One that has the name of a prediction, in whichever line,
    is called ``data/<name>`` in all of them: ``data/margin`` is the row's own, ``margin`` the policy's.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._records: list[dict[str, Any]] = []

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
        """Keep a batch's records."""
        self._records += prediction

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' records, put them in order, write them."""
        everyone = _gather(trainer, self._records)
        self._records = []
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            predicted = {name for record in everyone for name in record}
            for record in sorted(everyone, key=lambda record: record["index"]):
                extra = _named_apart(run_data(trainer).extra("predict", record["index"]), predicted)
                file.write(json.dumps({**extra, **record}, ensure_ascii=False, default=str) + "\n")
        temporary.replace(path)
        rank_zero_info(f"predictions of {len(everyone)} pairs: {path}")


def _named_apart(extra: dict[str, Any], predicted: set[str]) -> dict[str, Any]:
    """A row's other columns under names that nothing else has.

    >>> _named_apart({"margin": 2, "source": "x"}, {"index", "margin"})
    {'data/margin': 2, 'source': 'x'}
    """
    found = {}
    for name, value in extra.items():
        free = name
        while free in predicted or (free != name and free in extra):
            free = f"data/{free}"
        found[free] = value
    return found


def _gather(trainer: Trainer, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if trainer.world_size == 1:
        return records
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, records)
    return [record for share in shares for record in share]
