"""A callback that records the time of a fit's steps and of their parts."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import SimpleProfiler

TRAINING_STEP, BACKWARD = "SingleDeviceStrategy.training_step", "SingleDeviceStrategy.backward"


def mark() -> dict[str, float]:
    """Return wall time and CPU time as of now."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": time.time(), "user": used.ru_utime, "system": used.ru_stime}


class Clock(Callback):
    """Write times, phases and the GPU's peak memory when training ends.

    Args:
        path: file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the start, when everything is loaded and a reference precomputed."""
        self.steps.append(mark())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the end of a step."""
        if not trainer.fit_loop._should_accumulate():
            self.steps.append(mark())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
        measured = {"steps": self.steps, "phases": self._phases(trainer), "device_peak": peak}
        Path(self.path).write_text(json.dumps(measured), "utf-8")

    def _phases(self, trainer: Trainer) -> dict[str, float]:
        """Return the seconds of each phase; ``loop`` is the rest, of Lightning and the callbacks."""
        profiler: Any = trainer.profiler
        if not isinstance(profiler, SimpleProfiler):
            return {}

        def seconds(*names: str) -> float:
            known = profiler.recorded_durations.items()
            return sum(sum(times) for action, times in known if action.endswith(names))

        whole = self.steps[-1]["wall"] - self.steps[0]["wall"]
        phases = {
            "precompute": seconds("Precompute.on_fit_start"),
            "data": seconds("train_dataloader_next"),
            "training_step": seconds(TRAINING_STEP),
            "last backward": seconds(BACKWARD),
        }
        steps = seconds("LitPreference.optimizer_step")
        phases["optimizer"] = max(0.0, steps - phases["training_step"] - phases["last backward"])
        phases["loop"] = whole - sum(phases[name] for name in ("data", "training_step", "last backward", "optimizer"))
        return phases
