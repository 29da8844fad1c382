"""Randomness that depends on the step alone."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class StepSeed(Callback):
    """Seeds torch anew for each batch from (seed, batch, rank).

    Saved generator states are not enough for an exact resume: validation and every loader's workers draw from the
    global generator. With a seed that is a function of the position there is nothing to save.

    Args:
        seed: the run's seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed for this batch."""
        position = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(((self.seed * 1_000_003 + position) * 4099 + trainer.global_rank) % 2**63)
