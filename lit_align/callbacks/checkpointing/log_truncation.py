"""The history of a run is told once: what was written behind the checkpoint it goes on from is put aside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

FILES = ("metrics.jsonl", "samples.jsonl")


class LogTruncation(Callback):
    """On a resume from an older checkpoint, cuts the later steps out of the run's files.

    The files as they were move to ``previous/``, and TensorBoard is told to hide the later steps: a reader finds every
    step once, as it was trained.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cut what stands behind the restored step."""
        step = trainer.global_step
        if step == 0 or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        for name in FILES:
            cut = cut_behind(folder / name, step)
            if cut:
                rank_zero_info(f"{name}: {cut} lines behind step {step} moved to {folder / 'previous'}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _hide_behind(logger, step)


def cut_behind(path: Path, step: int) -> int:
    """Keep the lines of JSON up to a step; the file as it was moves to ``previous/`` if that leaves any out.

    Args:
        path: the file; it need not be there. A last line that was cut short is left out.
        step: the last one to keep.

    Returns:
        How many lines are left out.
    """
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if _step(line) <= step]
    if len(kept) == len(lines):
        return 0
    aside = path.parent / "previous" / f"{path.stem}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}{path.suffix}"
    aside.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    path.rename(aside)
    temporary.rename(path)
    return len(lines) - len(kept)


def _step(line: str) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
    return float("-inf") if step is None else float(step)


def _hide_behind(logger: TensorBoardLogger, step: int) -> None:
    """A session that starts at a step hides what older event files say from there on."""
    file: Any = logger.experiment._get_file_writer()
    file.add_event(Event(step=step + 1, file_version="brain.Event:2"))
    file.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
