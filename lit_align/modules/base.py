"""Stepping: what modules share whose optimizer steps are means over all pairs of the step, however it is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from lit_align.models import LoRA
from lit_align.modules.build import check_kept, kept
from lit_align.modules.reports import report
from lit_align.modules.schedule import Schedule
from lit_align.modules.step_totals import (
    NonFiniteError,
    StepLedger,
    optimizer_steps,
    run_data,
    total_norm,
    total_over_ranks,
    with_names,
)
from lit_align.types import PairBatch


class Stepping(LightningModule):
    """Sums gradients of weighted losses over the micro-batches of a step, and divides once, by the weight of all.

    A module of this kind returns the sum of its weighted losses from ``training_step``, times the number of
    processes and of accumulated batches, by which Lightning divides; and enters each batch into the ledger.

    Args:
        metrics: of training; computes name to number, its states are sums.
        lora: adapter; None where all weights train.
        optimizer: of the parameters that train.
        schedule: how the learning rate moves.
    """

    def __init__(self, metrics: Metric, lora: LoRA | None, optimizer: OptimizerCallable, schedule: Schedule) -> None:
        super().__init__()
        self.train_metrics: Any = metrics
        self.lora = lora
        self.optimizer = optimizer
        self.schedule = schedule
        self.ledger = StepLedger()
        self.strict_loading = lora is None
        self._gradient_norm = torch.zeros(())
        self._step_weight = 0.0
        self._last_step = 0
        self._loaded_step = 0

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Start an optimizer step: its clock, and without any gradient."""
        if not self.ledger.under_way:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()
        self.ledger.start()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning calls it behind the training step, in which gradients may have been added already."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into the mean over the step's pairs on all ranks; refuse what is not finite."""
        weight = self._step_weight = float(total_over_ranks(self.ledger.weight, self.trainer.strategy))
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, weight)
        norm = total_norm(gradients)
        try:
            self.ledger.close(norm, self.global_step, self.global_rank)
        except NonFiniteError as error:
            raise with_names(error, run_data(self.trainer)) from None
        self._gradient_norm = norm

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, let what follows it advance, and report every ``log_every_n_steps``, and behind the last.

        The report is made here, before any callback that ends a batch: a checkpoint then holds sums that have been
        reported and reset, and a resumed run reports what the uninterrupted one does.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        trainer: Any = self.trainer
        step = self.global_step + 1
        self.after_step(step)
        every = trainer.log_every_n_steps
        if (every and step % every == 0) or step == self._last_step:
            report(self, "train", self.training_values(optimizer.param_groups[0]["lr"]), step)

    def after_step(self, step: int) -> None:
        """Let advance what follows the policy.

        Args:
            step: optimizer steps that were taken.
        """

    def training_values(self, learning_rate: float) -> dict[str, Tensor]:
        """Everything over all pairs since the last report; equal on all ranks, but for the clock's.

        Args:
            learning_rate: of the step.
        """
        values: dict[str, Tensor] = self.train_metrics.compute()
        self.train_metrics.reset()
        tokens = total_over_ranks(self.ledger.tokens, self.trainer.strategy)
        values["grad_norm"] = self._gradient_norm
        values["learning_rate"] = torch.tensor(learning_rate)
        values["tokens_seen"] = tokens
        values["throughput/tokens_per_second"] = torch.tensor(self.ledger.rate(int(tokens)))
        return values

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over what trains, and its schedule per optimizer step."""
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        total = self._last_step = optimizer_steps(self.trainer)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains alone where there is an adapter."""
        checkpoint["state_dict"] = kept(self, self.lora, checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: the checkpoint's weights are not those of an adapter like this one.
        """
        check_kept(self, self.lora, checkpoint["state_dict"])
        self._loaded_step = int(checkpoint["global_step"])
