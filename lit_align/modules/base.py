"""The common base of the modules, and that of the modules that train a policy beside a reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from transformers import PreTrainedModel
from typing_extensions import override

from lit_align.compat.peft import PeftModel
from lit_align.models import ForwardPass, LoRA, SavedAdapter, load_policy
from lit_align.models.export import Form, save_causal_lm
from lit_align.models.start_checks import check_causal, check_training_mode
from lit_align.modules.build import (
    build_models,
    check_state_dict,
    freeze_unused,
    frozen_reference,
    trainable_state_dict,
)
from lit_align.modules.grad_cache import split_into_chunks
from lit_align.modules.lit_module import LitModule
from lit_align.modules.log_probs import LogProbReaders
from lit_align.modules.optimizer import SingleEvaluation, build_optimizer, check_kind
from lit_align.modules.probes import probe_sequences
from lit_align.modules.reports import check_precision, report, restore_sums, sums_of
from lit_align.modules.schedule import Schedule
from lit_align.modules.step_totals import (
    BATCHES_IN_STEP,
    NonFiniteError,
    StepTotals,
    batches_in_step,
    check_steps_are_fixed,
    run_data,
    total_norm,
    total_over_ranks,
    with_names,
)
from lit_align.types import PairBatch


class LitBase(LitModule):
    """Accumulates gradients of weighted losses over an optimizer step, and divides once by the total weight.

    A subclass returns the weighted sum of its losses from ``training_step``, multiplied by the number of processes and
    of accumulated batches, by which Lightning divides; and adds each batch to ``step_totals``. One that takes its
    optimizer steps itself does the same before each.

    Args:
        metrics: of training; their states are sums.
        lora: the adapter that is trained, new or saved; None where all weights train.
        optimizer: of the trainable parameters.
        schedule: of the learning rate.
        forward_pass: how models are read.
        decay_norms_and_biases: let weight decay act on norms and biases as well.
    """

    def __init__(
        self,
        metrics: Metric,
        lora: LoRA | SavedAdapter | None,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        forward_pass: ForwardPass,
        decay_norms_and_biases: bool,
    ) -> None:
        super().__init__()
        self.train_metrics: Any = metrics
        self.lora = lora
        self.optimizer = optimizer
        self.schedule = schedule
        self.decay_norms_and_biases = decay_norms_and_biases
        self.readers = LogProbReaders(forward_pass)
        self.step_totals = StepTotals()
        self.strict_loading = lora is None
        self._gradient_norm = torch.zeros(())
        self._step_weight = self._norm = 0.0
        self._last_step = 0
        self._loaded_step = 0
        self._models_checked = False

    @property
    def summed_metrics(self) -> dict[str, Metric]:
        """The metrics of training that a checkpoint keeps, by the prefix of their states in it."""
        return {"": self.train_metrics}

    @override
    def setup(self, stage: str) -> None:
        self.step_totals.reset()
        self._models_checked = False
        if stage == "fit":
            check_steps_are_fixed(self.trainer)
        check_precision(self.trainer.precision, self.loading, self.lora)

    def chunks(self, batch: PairBatch, batch_level: bool = False) -> list[PairBatch]:
        """Split a batch into chunks that go through the model one at a time; see `ForwardPass.tokens_at_once`."""
        return split_into_chunks(batch, self.readers.how.chunk_tokens(self.device.type, batch_level), self.trainer)

    def check_models(self) -> None:
        """Check once, on two short rows, that the trained models are causal, and free of noise in training mode.

        All processes must call it together.

        Raises:
            ValueError: a model gives numbers that an objective cannot be trained on.
        """
        sequences = [] if self._models_checked else probe_sequences(run_data(self.trainer))
        self._models_checked = True
        for name, model in self.trained_models().items() if sequences else ():
            values = check_causal(model, name, sequences)
            if self.trainer.state.fn == "fit":
                check_training_mode(model, name, sequences, values)

    def trained_models(self) -> dict[str, nn.Module]:
        """Return all models that are trained, by what messages call them."""
        return {f"model.policy {self.policy_name}": self.trained_model}

    @override
    def on_fit_start(self) -> None:
        self.check_models()

    @override
    def on_validation_start(self) -> None:
        self.check_models()

    @override
    def on_test_start(self) -> None:
        self.check_models()

    @override
    def on_predict_start(self) -> None:
        self.check_models()

    @override
    def on_train_epoch_start(self) -> None:
        if self.planned_steps != self._last_step:
            raise ValueError(
                f"the run now has {self.planned_steps} optimizer steps, and its schedule was made for "
                f"{self._last_step}: a callback has changed the batches of a step or of an epoch, or the epochs"
            )

    @override
    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        if not self.step_totals.under_way:
            for optimizer in self.trainer.optimizers:
                optimizer.zero_grad()
        self.step_totals.start()

    @override
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        # Lightning calls this after the training step, which may have accumulated gradients already.
        pass

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Turns the accumulated gradients into the mean over the step's pairs on all ranks.
        weight = self._step_weight = float(total_over_ranks(self.step_totals.weight, self.trainer.strategy))
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, weight or 1.0)  # a step of an on-policy run may have no pair
        norm = total_norm(gradients)
        try:
            self._norm = self.step_totals.finish(norm, self.global_step, self.global_rank)
        except NonFiniteError as error:
            raise with_names(error, run_data(self.trainer)) from None
        self._gradient_norm = norm

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        # Reports before any callback that ends a batch: a checkpoint then holds sums that have been reported and
        # reset, and a resumed run reports what the uninterrupted one does.
        assert optimizer_closure is not None
        closure = SingleEvaluation(optimizer_closure, optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        closure.check()
        trainer: Any = self.trainer
        step = self.global_step + 1
        self.after_step(step)
        every = trainer.log_every_n_steps
        if (every and step % every == 0) or step == self._last_step:
            values = self.training_values(optimizer.param_groups[0]["lr"])
            rate = self.step_totals.rate(int(values["tokens_seen"]))
            report(self, "train", {**values, "throughput/tokens_per_second": torch.tensor(rate)}, step)

    def after_step(self, step: int) -> None:
        """Advance what follows the policy."""

    def training_values(self, learning_rate: float) -> dict[str, Tensor]:
        """Compute the metrics since the last report, equal on all ranks, and reset them."""
        values: dict[str, Tensor] = self.train_metrics.compute()
        self.train_metrics.reset()
        values["grad_norm"] = self._gradient_norm
        values["learning_rate"] = torch.tensor(learning_rate)
        values["tokens_seen"] = total_over_ranks(self.step_totals.tokens, self.trainer.strategy)
        return values

    @abstractmethod
    def evaluation_values(self) -> dict[str, Tensor]:
        """Compute the metrics of an evaluation over all ranks."""

    @override
    def on_validation_epoch_end(self) -> None:
        self._report_evaluation("val")

    @override
    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    @override
    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self._report_evaluation("test")

    def _report_evaluation(self, stage: str) -> None:
        values = self.evaluation_values()
        if not self.trainer.sanity_checking:
            report(self, stage, values, self.global_step or self._loaded_step)

    def parameter_groups(self) -> list[Any]:
        """Return the trainable parameters as an optimizer takes them."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @override
    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = build_optimizer(self.optimizer, self.parameter_groups(), self, self.decay_norms_and_biases)
        check_kind(optimizer)
        total = self._last_step = self.planned_steps
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = trainable_state_dict(self, self.lora, checkpoint["state_dict"])
        checkpoint[BATCHES_IN_STEP] = batches_in_step(self.trainer, self.step_totals)
        checkpoint["sums"] = sums_of(self.summed_metrics, self.step_totals, self.trainer.strategy)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Raises a ValueError if the weights are not those of an adapter like this one.
        check_state_dict(self, self.lora, checkpoint["state_dict"])
        self._loaded_step = int(checkpoint["global_step"])
        restore_sums(checkpoint.get("sums"), self.summed_metrics, self.step_totals, self)


class LitPolicy(LitBase):
    """Trains a policy, beside a frozen reference if the objective needs one."""

    policy: PreTrainedModel | PeftModel

    @override
    def configure_model(self) -> None:
        if "policy" not in self._modules:
            self.policy = build_models(self, self.build_trained_model, self.reference)
            freeze_unused(self, self.policy)
            if self.reference is not None:
                if self._trainer is not None and self._trainer.precision == "bf16-mixed":
                    self.reference.narrow(torch.bfloat16, self.policy)
                self.reference.read_with(self.readers.read)
            self.policy.train()

    @property
    @override
    def trained_model(self) -> nn.Module:
        return self.policy

    @override
    def build_trained_model(self) -> PreTrainedModel | PeftModel:
        return load_policy(self.policy_name, self.loading, self.lora)

    @override
    def save_model(
        self, model: nn.Module, folder: Path, weights: dict[str, Any], pad_token: int, form: Form = "merged"
    ) -> None:
        save_causal_lm(model, folder, weights, form)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LitPolicy:
        apply: Any = super()._apply
        apply(fn, recurse)
        if self.reference is not None:
            self.reference.apply(fn)
        return self

    def frozen_models(self) -> list[nn.Module]:
        """Return the models that are read beside the policy and not trained."""
        return frozen_reference(self.reference, self.policy)

    @override
    def after_step(self, step: int) -> None:
        if self.reference is not None:
            self.reference.after_step(self.policy, step)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["reference"] = {} if self.reference is None else self.reference.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None and checkpoint.get("reference"):
            self.reference.load_state_dict(checkpoint["reference"])
