"""Truncates the logs of a resumed run after the restored step."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from typing_extensions import override

from lit_align.compat.torch import event_file_writer

FILES = ("metrics.jsonl", "samples.jsonl", "evaluation.jsonl")


class LogTruncation(Callback):
    """Truncates the logs after the restored step when a run resumes from an older checkpoint.

    The files as they were move to ``previous/``, and TensorBoard is told to hide the later steps, so that the logs
    hold every step once, as it was trained.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == 0 or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        for name in FILES:
            removed = truncate_log(folder / name, step)
            if removed:
                rank_zero_info(f"{name}: {removed} lines after step {step} moved to {folder / 'previous'}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _hide_steps_after(logger, step)


def truncate_log(path: Path, step: int) -> int:
    """Remove the JSON lines after a step; the file as it was moves to ``previous/`` if that removes any.

    Args:
        path: of the file, which may be missing. An incomplete last line is removed.
        step: the last one to keep.

    Returns:
        The number of removed lines.
    """
    lines = _lines(path) if path.exists() else []
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


def _lines(path: Path) -> list[str]:
    r"""Return the lines of a JSON lines file, which end in ``\n`` alone: texts may hold other line separators."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return [line.removesuffix("\n") for line in file]


def _step(line: str) -> float:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
    return float("-inf") if step is None else float(step)


def _hide_steps_after(logger: TensorBoardLogger, step: int) -> None:
    """Add an event that starts a session: TensorBoard ignores later steps of older event files."""
    file = event_file_writer(logger.experiment)
    file.add_event(Event(step=step + 1, file_version="brain.Event:2"))
    file.add_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
