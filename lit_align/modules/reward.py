"""Reward modelling as a Lightning module: a score head on a language model, and Bradley-Terry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_align.metrics.reward import RewardMetrics
from lit_align.models import Loading, LoRA
from lit_align.models.reward import ScoreModel, adapted, load_score_model, response_scores
from lit_align.modules.build import Builder
from lit_align.modules.fit_check import TokenSizes, check_fit
from lit_align.modules.kept_weights import check_kept, kept
from lit_align.modules.reports import checked_precision, report, restore_sums, sums_of
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.steps import (
    NonFiniteError,
    StepLedger,
    optimizer_steps,
    run_data,
    total_norm,
    total_over_ranks,
    with_names,
)
from lit_align.online.bradley_terry import BradleyTerry
from lit_align.types import Outcome, PairBatch, PairScores

SIDES = ("chosen", "rejected")


class LitReward(LightningModule):
    """Trains a reward model on preference pairs.

    The gradient of an optimizer step is the weighted mean over all its pairs, whatever the micro-batches or the number
    of processes.

    Args:
        policy: the language model that the head is put on: local folder, hub name, or ``testbed:policy``; or a reward
            model to go on with.
        objective: from scores to the loss.
        loading: how the weights are read.
        lora: train a low-rank adapter and the head instead of all weights.
        optimizer: any torch optimizer by class path.
        schedule: how the learning rate moves.
    """

    def __init__(
        self,
        policy: str,
        objective: BradleyTerry = BradleyTerry(),
        loading: Loading = Loading(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-5, weight_decay=0.0),
        schedule: Schedule = Cosine(),
    ) -> None:
        super().__init__()
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.lora = lora
        self.optimizer = optimizer
        self.schedule = schedule
        self.train_metrics = RewardMetrics(objective.contrast.beta)
        self.eval_metrics = RewardMetrics(objective.contrast.beta)
        self.ledger = StepLedger()
        self._gradient_norm = torch.zeros(())
        self._last_step = 0
        self._loaded_step = 0
        self.strict_loading = lora is None

    def setup(self, stage: str) -> None:
        """Check that model and data fit, before any weight is read."""
        self.ledger.begin()
        checked_precision(self.trainer.precision)
        data = run_data(self.trainer)
        if data is None:
            return
        for name, split in data.splits.items():
            if split.unpaired:
                raise ValueError(f"data.{name} has rows with one response; a reward model is trained on pairs")
            if "preference_probability" in split.honoured:
                raise ValueError(
                    f"data.{name} has the column preference_probability, which BradleyTerry would ignore; if that is "
                    "right, leave it out: data.columns: {preference_probability: null}"
                )
        if "model" not in self._modules:
            sizes = TokenSizes(data.tokenizer_name, data.vocabulary, data.pad_token, data.longest)
            check_fit(sizes, self.policy_name, self.loading.revision)

    def configure_model(self) -> None:
        """Load the body and its head; every rank does it, once."""
        if "model" not in self._modules:
            self.model: ScoreModel = Builder(self)(self.build_model)
            self.model.train()

    def build_model(self) -> ScoreModel:
        """The model as it is before the first step, with its adapter if there is one."""
        model = load_score_model(self.policy_name, self.loading, head="fresh")
        return model if self.lora is None else adapted(model, self.lora)

    # ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, batch: PairBatch) -> PairScores:
        """The scores of both sides, in one forward pass."""
        return response_scores(self.model, batch)

    def _outcome(self, batch: PairBatch) -> Outcome:
        return self.objective(self(batch), batch.margin)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Sum of the weighted losses; ``on_before_optimizer_step`` divides by the weight of the whole step."""
        outcome = self._outcome(batch)
        self.train_metrics.update(outcome, batch)
        self.ledger.add(outcome, batch)
        total = (outcome.loss * batch.weight).sum()
        return total * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Start an optimizer step: its clock, and without any gradient."""
        if not self.ledger.under_way:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()
        self.ledger.start()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into the mean over the step's pairs on all ranks; refuse what is not finite."""
        weight = float(total_over_ranks(self.ledger.weight, self.trainer.strategy))
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
        """Take the step, and report every ``log_every_n_steps``, and behind the last."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        every, step = self.trainer.log_every_n_steps, self.global_step + 1  # type: ignore[attr-defined]
        if (every and step % every == 0) or step == self._last_step:
            values = self.train_metrics.compute()
            self.train_metrics.reset()
            tokens = total_over_ranks(self.ledger.tokens, self.trainer.strategy)
            values |= {
                "grad_norm": self._gradient_norm,
                "learning_rate": torch.tensor(optimizer.param_groups[0]["lr"]),
                "tokens_seen": tokens,
                "throughput/tokens_per_second": torch.tensor(self.ledger.rate(int(tokens))),
            }
            report(self, "train", values, step)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the sums."""
        self.eval_metrics.update(self._outcome(batch), batch)

    def on_validation_epoch_start(self) -> None:
        """Begin with empty sums; they stay until the next evaluation, for figures."""
        self.eval_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Report the sums of all validation pairs."""
        self._report_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.eval_metrics.reset()

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Report the sums of all test pairs."""
        self._report_evaluation("test")

    def _report_evaluation(self, stage: str) -> None:
        if not self.trainer.sanity_checking:
            report(self, stage, self.eval_metrics.compute(), self.global_step or self._loaded_step)

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: both scores, their gap, lengths."""
        scores, lengths = self(batch), batch.lengths
        return [
            {
                "index": int(batch.index[row]),
                "scores": dict(zip(SIDES, scores[row].tolist(), strict=True)),
                "score_margin": float(scores[row, 0] - scores[row, 1]),
                "lengths": dict(zip(SIDES, lengths[row].tolist(), strict=True)),
            }
            for row in range(len(batch.index))
            if float(batch.weight[row]) > 0
        ]

    # ── optimizer, state ────────────────────────────────────────────────────────────────────────────────────────

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over what trains, and its schedule per optimizer step."""
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        total = self._last_step = optimizer_steps(self.trainer)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep adapter and head alone where there is one, and the sums that a resumed run goes on from."""
        checkpoint["state_dict"] = kept(self, self.lora, checkpoint["state_dict"])
        checkpoint["sums"] = sums_of(self.train_metrics, self.ledger, self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rank zero takes the sums over; the others go on from nothing, so the totals are right.

        Raises:
            ValueError: the checkpoint's weights are not those of an adapter like this one.
        """
        check_kept(self, self.lora, checkpoint["state_dict"])
        self._loaded_step = int(checkpoint["global_step"])
        restore_sums(checkpoint.get("sums"), self.train_metrics, self.ledger, self)
