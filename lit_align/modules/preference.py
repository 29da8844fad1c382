"""Direct alignment as a Lightning module: a policy, a frozen reference, an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from lit_align.metrics import PairMetrics
from lit_align.models import AdapterOff, Loading, LoRA, Reference, SecondModel, load_causal_lm, response_log_probs
from lit_align.models.log_probs import packed_mask
from lit_align.modules.columns import check_columns
from lit_align.modules.fit_check import TokenSizes, check_fit, check_reference
from lit_align.modules.records import pair_records
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.steps import NonFiniteError, StepLedger, optimizer_steps, run_data, total_over_ranks
from lit_align.objectives.objective import Objective
from lit_align.types import Outcome, PairBatch, PairLogProbs

START_TOLERANCE = 0.05
"""Nats by which a token's log-probability may differ through rounding alone, bfloat16 included."""
REFUSED_PRECISIONS = ("16-mixed", "16-true", "bf16-true")


class LitPreference(LightningModule):
    """Trains a policy on preference pairs with one objective.

    The gradient of an optimizer step is the weighted mean over all its pairs, whatever the micro-batches, the
    number of processes, or how full the last accumulation window is.

    Args:
        policy: local folder, hub name, or ``testbed:policy``.
        objective: what is optimised: an ``Objective``, or a preset such as ``lit_align.objectives.sr_dpo``.
        reference: where the frozen log-probabilities come from. None chooses: the policy with its adapter off if
            there is an adapter, a frozen copy of the policy otherwise, nothing if the objective needs no reference.
        loading: how the weights are read.
        lora: train a low-rank adapter instead of all weights.
        optimizer: any torch optimizer by class path.
        schedule: how the learning rate moves.

    Raises:
        ValueError: a reference is given to an objective that needs none.
    """

    def __init__(
        self,
        policy: str,
        objective: Objective,
        reference: Reference | None = None,
        loading: Loading = Loading(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = Cosine(),
    ) -> None:
        super().__init__()
        if reference is not None and not objective.needs_reference:
            raise ValueError("model.reference is set, but the objective needs none; leave it out")
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.lora = lora
        self.optimizer = optimizer
        self.schedule = schedule
        self.reference = reference or (_default_reference(lora) if objective.needs_reference else None)
        self.train_metrics = PairMetrics(objective.term_names)
        self.eval_metrics = PairMetrics(objective.term_names)
        self.ledger = StepLedger()
        self._gradient_norm = torch.zeros(())
        self._loaded_step = 0
        self._last_step = 0
        self.strict_loading = lora is None

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Check that what the objective needs is there, before any weight is read."""
        if self.trainer.precision in REFUSED_PRECISIONS:
            raise ValueError(
                f"trainer.precision {self.trainer.precision} is not exact enough here: take bf16-mixed, or 32-true "
                "with model.loading.dtype bfloat16, which leaves the rotary tables in float32"
            )
        data = run_data(self.trainer)
        if self.objective.needs_prompted and data is not None and not data.prompted:
            raise ValueError("the objective compares with a quality prompt: data.prompted must be true")
        if data is not None and "policy" not in self._modules:
            self._check_fit(data)
        if data is not None:
            check_columns(self.objective, data.splits)

    def _check_fit(self, data: Any) -> None:
        """Compare the sizes of tokenizer and data with those of the models that will read them."""
        sizes = TokenSizes(data.tokenizer_name, data.vocabulary, data.pad_token, data.longest)
        check_fit(sizes, self.policy_name, self.loading.revision)
        if isinstance(self.reference, SecondModel) and self.reference.path is not None:
            revisions = (self.reference.loading.revision, self.loading.revision)
            check_reference(self.reference.path, self.policy_name, revisions)

    def configure_model(self) -> None:
        """Load the policy and attach the reference; every rank does it, once."""
        if "policy" in self._modules:
            return
        model = load_causal_lm(self.policy_name, self.loading)
        self.policy: PreTrainedModel | PeftModel = model if self.lora is None else self.lora.wrap(model)
        if self.reference is not None:
            self.reference.attach(self.policy)
        self.policy.train()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LitPreference:
        move: Any = super()._apply
        move(fn, recurse)
        if self.reference is not None:
            self.reference.apply(fn)
        return self

    # ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, batch: PairBatch) -> PairLogProbs:
        """Log-probabilities of both sides under policy and reference, with the prompted pair where it is needed."""
        prompted = None
        if self.objective.needs_prompted:
            if batch.prompted is None:
                raise ValueError("the batch has no prompted pair; build the data with prompted=True")
            prompted = self._prompted(batch.prompted)
        return self._log_probs(batch, prompted)

    @torch.no_grad()
    def _prompted(self, batch: PairBatch) -> PairLogProbs:
        """Without gradient and, whatever the policy's mode, without an adapter's dropout."""
        training = self.policy.training
        self.policy.eval()
        try:
            return self._log_probs(batch)
        finally:
            self.policy.train(training)

    def _log_probs(self, batch: PairBatch, prompted: PairLogProbs | None = None) -> PairLogProbs:
        return PairLogProbs(
            policy=response_log_probs(self.policy, batch),
            reference=self.reference.log_probs(batch) if self.reference is not None else None,
            mask=packed_mask(batch),
            prompted=prompted,
            margin=batch.margin,
            preference_probability=batch.preference_probability,
        )

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Sum of the weighted losses; ``on_before_optimizer_step`` divides by the weight of the whole step."""
        if not self.objective.needs_rejected:
            batch = batch.chosen_side()
        logps = self(batch)
        if self.global_step == 0 and batch_idx == 0:
            self._check_start(logps)
        outcome: Outcome = self.objective(logps)
        self.train_metrics.update(outcome, logps, batch)
        self.ledger.add(outcome, batch)
        total = (outcome.loss * batch.weight).sum()
        return total * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def _check_start(self, logps: PairLogProbs) -> None:
        """Before the first step a copied reference is the policy, and the first loss is known; say if it is not."""
        copied = isinstance(self.reference, AdapterOff) or (
            isinstance(self.reference, SecondModel) and self.reference.path is None
        )
        if not copied or logps.reference is None:
            return
        apart = float((logps.policy - logps.reference).detach().abs().max())
        if apart > START_TOLERANCE:
            rank_zero_warn(
                f"before the first step the policy is not its reference: log-probs differ by up to {apart:.2g}; "
                "something changed it after it was loaded, or it has dropout of its own"
            )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into the mean over the step's pairs on all ranks; refuse what is not finite."""
        weight = float(total_over_ranks(self.ledger.weight, self.trainer.strategy))
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        torch._foreach_div_(gradients, weight)
        norm = nn.utils.get_total_norm(gradients)
        try:
            self.ledger.close(norm, self.global_step, self.global_rank)
        except NonFiniteError as error:
            raise self._with_names(error) from None
        self._gradient_norm = norm

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take the step, and report every ``log_every_n_steps``, and behind the last.

        The report is made here, before any callback that ends a batch: a checkpoint then holds sums that have been
        reported and reset, and a resumed run reports what the uninterrupted one does.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        trainer: Any = self.trainer
        step = self.global_step + 1
        every = trainer.log_every_n_steps
        if (every and step % every == 0) or step == self._last_step:
            self._report("train", self._training_values(optimizer.param_groups[0]["lr"]), step)

    def _with_names(self, error: NonFiniteError) -> NonFiniteError:
        """The same error with file and line of each row, where the data know them."""
        data = run_data(self.trainer)
        if data is None:
            return error
        names = [data.rows["train"][row].where for row in error.rows[:10]]
        return NonFiniteError(error.step, error.rank, error.norm, error.rows, names)

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Start the clock of an optimizer step."""
        self.ledger.start()

    def _training_values(self, learning_rate: float) -> dict[str, Tensor]:
        """Everything over all pairs since the last report; equal on all ranks, but for the clock's."""
        values = self.train_metrics.compute()
        self.train_metrics.reset()
        tokens = total_over_ranks(self.ledger.tokens, self.trainer.strategy)
        values["grad_norm"] = self._gradient_norm
        values["learning_rate"] = torch.tensor(learning_rate)
        values["tokens_seen"] = tokens
        values["throughput/tokens_per_second"] = torch.tensor(self.ledger.rate(int(tokens)))
        return values

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Add a batch to the sums."""
        logps = self(batch)
        self.eval_metrics.update(self.objective(logps), logps, batch)

    def on_validation_epoch_end(self) -> None:
        """Report the sums of all validation pairs."""
        self._report_evaluation("val")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Report the sums of all test pairs."""
        self._report_evaluation("test")

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per pair: rewards as optimised, log-ratios at both scales, lengths, margin."""
        return pair_records(self(batch), batch, self.objective)

    # ── reports ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _report_evaluation(self, stage: str) -> None:
        values = self.eval_metrics.compute()
        self.eval_metrics.reset()
        if not self.trainer.sanity_checking:
            self._report(stage, values, self.global_step or self._loaded_step)

    def _report(self, stage: str, values: dict[str, Tensor], step: int) -> None:
        """The values are equal on all ranks: every rank keeps them, loggers write on rank zero."""
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self.log_dict({name: value.float() for name, value in named.items()}, logger=False)
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in named.items()}, step=step)

    # ── optimizer, state ────────────────────────────────────────────────────────────────────────────────────────

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over what trains, and its schedule per optimizer step."""
        optimizer = self.optimizer(p for p in self.parameters() if p.requires_grad)
        total = self._last_step = optimizer_steps(self.trainer)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone where there is one, and the sums that a resumed run goes on from."""
        if self.lora is not None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: state[name] for name in self._trained()}
        sums: dict[str, Any] = {"tokens": self.ledger.tokens, **self.train_metrics.metric_state}
        checkpoint["sums"] = {name: total_over_ranks(value, self.trainer.strategy) for name, value in sums.items()}
        checkpoint["sums_of"] = list(self.train_metrics.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rank zero takes the sums over; the others go on from nothing, so the totals are right.

        Raises:
            ValueError: the checkpoint's weights are not those of an adapter like this one.
        """
        if self.lora is not None and set(checkpoint["state_dict"]) != self._trained():
            raise ValueError("the checkpoint's weights are not those of this run's adapter (model.lora)")
        self._loaded_step = int(checkpoint["global_step"])
        sums = checkpoint.get("sums")
        if sums is None or checkpoint["sums_of"] != list(self.train_metrics.names):
            return
        first = self.global_rank == 0
        self.ledger.resume(sums["tokens"] if first else torch.zeros_like(sums["tokens"]), int(sums["tokens"]))
        if first:
            for name in self.train_metrics.metric_state:
                setattr(self.train_metrics, name, sums[name].to(self.device))

    def _trained(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def _default_reference(lora: LoRA | None) -> Reference:
    return SecondModel() if lora is None else AdapterOff()
