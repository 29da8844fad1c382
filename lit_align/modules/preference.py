"""Direct alignment as a Lightning module: a policy, a frozen reference, an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import AdamW
from torchmetrics import MeanMetric, Metric
from typing_extensions import override

from lit_align.compat.lightning import is_accumulating
from lit_align.data import PreferenceData
from lit_align.metrics import PairMetrics
from lit_align.metrics.margins import MarginsByLength
from lit_align.metrics.pairs import CORRELATION
from lit_align.models import ForwardPass, HeadGradientAccumulator, Loading, LoRA, Reference, adapter_of
from lit_align.models.logps.inputs import pack_ahead
from lit_align.models.router import RouterBalance
from lit_align.modules.base import LitPolicy
from lit_align.modules.global_batch import Evaluation
from lit_align.modules.grad_cache import GradCache, backward_now
from lit_align.modules.objective_state import ObjectiveState
from lit_align.modules.pair_loss import PairLoss
from lit_align.modules.predict import pair_records
from lit_align.modules.prompt_check import measure_prompt
from lit_align.modules.reports import report
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import (
    check_models,
    check_needs,
    check_start,
    length_quarters,
    read_scales,
    reference_of,
    scale_values,
)
from lit_align.modules.step_totals import run_data
from lit_align.objectives.base import Needs, Objective
from lit_align.objectives.beta_scale import BetaReading
from lit_align.objectives.pair_seed import evaluation_pair_seed, training_pair_seed
from lit_align.types import LossOutput, PairBatch, PairLogProbs, PairSeed


class LitPreference(LitPolicy):
    """Trains a policy on preference pairs with one objective.

    The gradient of an optimizer step is the weighted mean over all its pairs, whatever the micro-batches, the number
    of processes, or how full the last accumulation window is. An objective whose pairs depend on each other sees all
    of them at once: the micro-batches of a step are kept until its last one, and go through the policy twice.

    Args:
        policy: local folder, hub name, or ``testbed:policy``; or the folder of a LoRA adapter.
        objective: an ``Objective``, or a preset such as ``lit_align.objectives.sr_dpo``.
        reference: where the frozen log-probabilities come from. None uses the policy with its adapter off if there is
            a new adapter, a frozen copy of the policy otherwise (of a saved adapter, on the same base weights), and
            nothing if the objective needs no reference.
        loading: how the weights are read.
        lora: train a low-rank adapter instead of all weights; leave it out for a policy that is the folder of an
            adapter, which is trained further.
        optimizer: any torch optimizer by class path.
        schedule: of the learning rate.
        forward_pass: how log-probabilities are computed; this affects time and memory, not the result.
        decay_norms_and_biases: let weight decay act on norms and biases as well.
        router_loss: weight of the routers' load-balancing loss, for mixtures of experts; 0 leaves it out. It is
            computed for each pair by itself (`RouterBalance`) and reported as ``train/router_loss``, before its
            weight; ``loss`` stays that of the objective.

    Raises:
        ValueError: a reference is given to an objective that needs none, or a moving one where there is an adapter.
    """

    task: Literal["preference"] = "preference"
    objective: Objective

    def __init__(
        self,
        policy: str,
        objective: Objective,
        reference: Reference | None = None,
        loading: Loading = Loading(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = Cosine(),
        forward_pass: ForwardPass = ForwardPass(),
        decay_norms_and_biases: bool = False,
        router_loss: float = 0.0,
    ) -> None:
        if not 0 <= router_loss < math.inf:
            raise ValueError(f"model.router_loss is {router_loss}; expected a finite number, 0 or more")
        adapter = adapter_of(policy, lora)
        chosen = reference_of(objective, reference, adapter)
        from_start = chosen is not None and chosen.is_start
        super().__init__(
            PairMetrics(objective, from_start), adapter, optimizer, schedule, forward_pass, decay_norms_and_biases
        )
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.reference = chosen
        self.eval_metrics = PairMetrics(objective, from_start, spread=True)
        self.eval_margins = MarginsByLength()
        self.objective_state = ObjectiveState(objective)
        self._micro_batches: list[PairBatch] = []
        self._evaluation = Evaluation(objective, self.eval_metrics, self.eval_margins)
        self.betas: tuple[BetaReading, ...] = ()
        self._seed = 0
        self.router_loss = router_loss
        self.router_metric = MeanMetric() if router_loss else None

    # ── the loss ────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        chunks = self.chunks(batch if self.needs.rejected else batch.chosen_side(), self.needs.batch_level)
        step = self._batch_level_step if self.needs.batch_level else self._fused_step
        return step(chunks) * self.trainer.accumulate_grad_batches

    def _fused_step(self, chunks: list[PairBatch]) -> Tensor:
        """Backpropagate all chunks but the last, and return the loss of the last for Lightning to backpropagate."""
        accumulator = HeadGradientAccumulator(len(chunks))
        for chunk in chunks[:-1]:
            backward_now(self._with_router_loss(self.pair_loss.fused(chunk, accumulator), chunk))
        return self._with_router_loss(self.pair_loss.fused(chunks[-1], accumulator), chunks[-1])

    def _with_router_loss(self, output: LossOutput, chunk: PairBatch) -> Tensor:
        """Record a chunk, and return its loss with that of its routers, multiplied by the number of processes."""
        return self._record(output, chunk) + self._weighted_router_loss(chunk) * self.trainer.world_size

    def _weighted_router_loss(self, batch: PairBatch) -> Tensor | float:
        """Return the weighted load-balancing loss of pairs that have just been read with gradients; 0 without one."""
        losses = self.readers.of(self.policy, batch).take_router_losses()
        if losses is None or self.router_metric is None:
            return 0.0
        self.router_metric.update(losses.detach(), batch.weight)
        return self.router_loss * (losses * batch.weight).sum()

    def loss(self, batch: PairBatch) -> LossOutput:
        """Compute the weighted sum of the losses by its definition; see `PairLoss`."""
        return self.pair_loss(batch)

    def fused_loss(self, batch: PairBatch, accumulator: HeadGradientAccumulator | None = None) -> LossOutput:
        """Compute the same without keeping logits; see `PairLoss.fused`."""
        return self.pair_loss.fused(batch, accumulator)

    def _batch_level_step(self, chunks: list[PairBatch]) -> Tensor:
        """Return zero before the last micro-batch of a step, and then the loss of all of them together."""
        self._micro_batches += chunks
        if is_accumulating(self.trainer):
            return torch.zeros((), device=self.device, requires_grad=True)
        batches, self._micro_batches = self._micro_batches, []
        seed = (self._seed * 1_000_003 + self.global_step) * 4099 + self.global_rank
        cache = GradCache(
            self.log_probs, self.pair_loss.reader.policy_alone, seed, self.device, self._weighted_router_loss
        )
        outputs = cache.evaluate(self.objective, batches, self.trainer)
        for output, batch in zip(outputs, batches, strict=True):
            self._record(output, batch)
        return cache.backward(batches, outputs, self.trainer.world_size)

    def log_probs(self, batch: PairBatch) -> PairLogProbs:
        """Compute the log-probabilities of both sides under policy and reference, and what the objective needs."""
        return self.pair_loss.log_probs(batch)

    @override
    def forward(self, batch: PairBatch) -> PairLogProbs:
        return self.log_probs(batch)

    @property
    def needs(self) -> Needs:
        """What the objective needs."""
        return self.objective.needs

    @property
    def pair_loss(self) -> PairLoss:
        """What computes the loss of this run's pairs."""
        return PairLoss(self.policy, self.reference, self.readers, self.objective_state, self._pair_seed)

    def _pair_seed(self, batch: PairBatch) -> PairSeed:
        """Return seeds that differ from step to step in training, and are the same in every evaluation."""
        if self.training:
            return training_pair_seed(batch.index, self.global_step, self._seed)
        return evaluation_pair_seed(batch.index)

    def _record(self, output: LossOutput, batch: PairBatch) -> Tensor:
        """Add a chunk to metrics and totals, and return its loss multiplied by the number of processes."""
        assert output.outcome is not None
        if self.global_step == 0 and not self.step_totals.batches:
            check_start(self.reference, output.logps)
        self.train_metrics.update(output.outcome, output.logps, batch, output.grad_logps)
        self.step_totals.add(output.outcome, batch)
        self.objective_state.add(output.outcome, batch)
        return output.loss * self.trainer.world_size

    @override
    def configure_model(self) -> None:
        super().configure_model()
        if self.router_loss:
            self.readers.routers[self.policy] = RouterBalance(self.policy)

    @property
    @override
    def summed_metrics(self) -> dict[str, Metric]:
        routers = {} if self.router_metric is None else {"router_": self.router_metric}
        return {**super().summed_metrics, **routers}

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def setup(self, stage: str) -> None:
        # Discards what an interrupted run left, and checks everything that can be checked before any weight is read.
        super().setup(stage)
        self._micro_batches = []
        self._evaluation.reset()
        self.objective_state.reset()
        data = run_data(self.trainer)
        if data is None:
            return
        if "policy" not in self._modules:
            check_models(data, self.policy_name, self.loading, self.reference)
        check_needs(self.objective, data)
        self._seed = data.seed
        self.pack_in_workers(data)
        if stage == "fit":
            self.train_metrics.reset()
            self.train_metrics.quarters = length_quarters(data.splits["train"])
            self.betas = read_scales(self.objective, data.splits["train"])

    def pack_in_workers(self, data: Any) -> None:
        """Let the workers that collate batches pack them too, for a device that reads them whole.

        Args:
            data: the data module.
        """
        how, device = self.readers.how, self.trainer.strategy.root_device.type
        is_whole = how.layout in ("auto", "shared") and self.needs.rejected
        if device != "cpu" and is_whole and not how.chunk_tokens(device, self.needs.batch_level):
            data.pack = pack_ahead

    @property
    @override
    def data_needs(self) -> Needs:
        return self.objective.needs

    @override
    def on_train_start(self) -> None:
        # Measures whether the quality prompt of a self-refining run can tell it anything, once.
        super().on_train_start()
        data = run_data(self.trainer)
        if not self.needs.prompted or self.global_step or not isinstance(data, PreferenceData):
            return
        with self.trainer.precision_plugin.forward_context():
            power = self.objective.prompted_length_power or 0.0
            knowledge = measure_prompt(self.policy, self.readers, data, self.device, self.planned_steps, power)
        if knowledge is not None:
            (rank_zero_info if knowledge.informs else rank_zero_warn)(knowledge.line)
            report(self, "train", knowledge.values, 0)

    # ── steps and evaluation ────────────────────────────────────────────────────────────────────────────────────

    def dry_run_loss(self, batch: PairBatch, is_part: bool) -> Tensor:
        """Compute the loss of a micro-batch as ``training_step`` does, without metrics, for ``plan``.

        Args:
            batch: pairs of any content.
            is_part: whether the optimizer step has other parts.
        """
        part = batch if self.needs.rejected else batch.chosen_side()
        if not self.needs.batch_level:
            return self.fused_loss(part).loss
        if not is_part:
            loss: Tensor = self.objective(self.log_probs(part)).loss
            return loss.sum()
        with torch.no_grad():
            self.log_probs(part)  # the objective is evaluated on all parts together, and then each part is read again
        return self.pair_loss.reader.policy_alone(part).sum()

    @override
    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.objective_state.advance(self._step_weight, self.trainer.strategy)

    @override
    def training_values(self, learning_rate: float) -> dict[str, Tensor]:
        values = super().training_values(learning_rate)
        values |= {f"running/{name}": value for name, value in self.objective_state.values.items()}
        if self.router_metric is not None:
            values["router_loss"] = self.router_metric.compute()
            self.router_metric.reset()
        return values | scale_values(self.betas)

    @property
    @override
    def standard_errors(self) -> Mapping[str, tuple[float, float]]:
        return self.eval_metrics.errors

    @property
    @override
    def metric_names(self) -> tuple[str, ...]:
        return (*self.eval_metrics.names, CORRELATION)

    @override
    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._evaluation.update(self(batch), batch)

    @override
    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        return pair_records(self(batch), batch, self.objective)

    @override
    def evaluation_values(self) -> dict[str, Tensor]:
        values = self._evaluation.compute(self.trainer, self.device)
        self.margins = self._evaluation.last_margins
        return values

    @property
    def _sum_names(self) -> list[str]:
        return [*self.train_metrics.names, *([] if self.router_metric is None else ["router_loss"])]

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["sums_of"] = self._sum_names
        checkpoint["running"] = dict(self.objective_state.values)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("sums_of") != self._sum_names:
            checkpoint = {**checkpoint, "sums": None}
        super().on_load_checkpoint(checkpoint)
        self.objective_state.load(checkpoint.get("running", {}))
