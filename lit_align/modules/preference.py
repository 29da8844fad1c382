"""Direct alignment as a Lightning module: a policy, a frozen reference, an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from lit_align.metrics import PairMetrics
from lit_align.models import ForwardPass, HeadSum, Loading, LoRA, Reference, load_causal_lm
from lit_align.modules.base import Stepping
from lit_align.modules.build import build_models, frozen_reference
from lit_align.modules.global_batch import Evaluation, Judged, judge_alone
from lit_align.modules.grad_cache import Window, portions, pull_now
from lit_align.modules.log_probs import Scoring, Sources
from lit_align.modules.objective_state import RunningNumbers
from lit_align.modules.predict import pair_records
from lit_align.modules.reports import check_precision, report, restore_sums, sums_of
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
from lit_align.objectives.base import Objective
from lit_align.objectives.beta_scale import BetaReading
from lit_align.objectives.pair_seed import draw_in_evaluation, draw_in_training
from lit_align.types import PairBatch, PairDraw, PairLogProbs


class LitPreference(Stepping):
    """Trains a policy on preference pairs with one objective.

    The gradient of an optimizer step is the weighted mean over all its pairs, whatever the micro-batches, the
    number of processes, or how full the last accumulation window is. An objective whose pairs depend on each other
    sees all of them at once: the micro-batches of a step are kept until its last one, and go through the policy twice.

    Args:
        policy: local folder, hub name, or ``testbed:policy``.
        objective: what is optimised: an ``Objective``, or a preset such as ``lit_align.objectives.sr_dpo``.
        reference: where the frozen log-probabilities come from. None chooses: the policy with its adapter off if
            there is an adapter, a frozen copy of the policy otherwise, nothing if the objective needs no reference.
        loading: how the weights are read.
        lora: train a low-rank adapter instead of all weights.
        optimizer: any torch optimizer by class path.
        schedule: how the learning rate moves.
        forward_pass: how log-probabilities are computed; it changes time and memory, not what comes out.

    Raises:
        ValueError: a reference is given to an objective that needs none, or one that moves where there is an adapter.
    """

    task: Literal["preference"] = "preference"

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
    ) -> None:
        chosen = reference_of(objective, reference, lora)
        from_start = chosen is not None and chosen.is_start
        super().__init__(PairMetrics(objective.term_names, from_start), lora, optimizer, schedule)
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.reference = chosen
        self.eval_metrics = PairMetrics(objective.term_names, from_start)
        self.running = RunningNumbers(objective)
        self.sources = Sources(forward_pass)
        self._kept: list[PairBatch] = []
        self._evaluation = Evaluation(objective, self.eval_metrics)
        self.betas: tuple[BetaReading, ...] = ()
        self._seed = 0

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Check that what the objective needs is there, before any weight is read; forget what broke off."""
        self._kept = []
        self._evaluation.begin()
        self.ledger.begin()
        self.running.begin()
        check_precision(self.trainer.precision, self.loading, self.lora)
        data = run_data(self.trainer)
        if data is None:
            return
        if "policy" not in self._modules:
            check_models(data, self.policy_name, self.loading, self.reference)
        check_needs(self.objective, data)
        self._seed = data.seed
        if stage == "fit":
            self.train_metrics.reset()
            self.train_metrics.quarters = length_quarters(data.splits["train"])
            self.betas = read_scales(self.objective, data.splits["train"])

    def configure_model(self) -> None:
        """Load the policy and attach the reference; every rank does it, once."""
        if "policy" in self._modules:
            return
        self.policy: PreTrainedModel | PeftModel = build_models(self, self.build_policy, self.reference)
        if self.reference is not None:
            self.reference.read_with(self.sources.read)
        self.policy.train()

    def build_policy(self) -> PreTrainedModel | PeftModel:
        """The policy as it is before the first step, with its adapter if there is one."""
        model = load_causal_lm(self.policy_name, self.loading)
        return model if self.lora is None else self.lora.wrap(model)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LitPreference:
        move: Any = super()._apply
        move(fn, recurse)
        if self.reference is not None:
            self.reference.apply(fn)
        return self

    # ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, batch: PairBatch, draw: PairDraw | None = None) -> PairLogProbs:
        """Log-probabilities of both sides under policy and reference, with what else the objective needs."""
        draw = draw_in_evaluation(batch.index) if draw is None else draw
        return self._scoring(batch, draw, self.running.values)

    @property
    def _scoring(self) -> Scoring:
        return Scoring(self.objective, self.policy, self.reference, self.sources)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Sum of the weighted losses; ``on_before_optimizer_step`` divides by the weight of the whole step."""
        if not self.objective.needs.rejected:
            batch = batch.chosen_side()
        if self.objective.needs.batch_level:
            return self._train_across(batch)
        parts = portions(batch, self._tokens_at_once, self.trainer)
        head_sum = HeadSum(len(parts))
        for part in parts[:-1]:
            pull_now(self._charged(part, head_sum) * self.trainer.world_size)
        return self._charged(parts[-1], head_sum) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @property
    def _tokens_at_once(self) -> int:
        return self.sources.how.portion(self.device.type, self.objective.needs.batch_level)

    def _charged(self, batch: PairBatch, head_sum: HeadSum) -> Tensor:
        """The weighted losses of some pairs, which do not depend on each other, summed."""
        charged = self._scoring.charge(batch, self._training_draw(batch), self.running.values, head_sum)
        self._check_start(charged.logps)
        self._enter(judge_alone(self.objective, charged.logps, batch.weight), charged.logps, batch)
        return charged.loss

    def _train_across(self, batch: PairBatch) -> Tensor:
        """Nothing before the last micro-batch of a step; there, the gradient of all of them together."""
        self._kept += portions(batch, self._tokens_at_once, self.trainer)
        if self.trainer.fit_loop._should_accumulate():
            return torch.zeros((), device=self.device, requires_grad=True)
        batches, self._kept = self._kept, []
        position = (self._seed * 1_000_003 + self.global_step) * 4099 + self.global_rank
        window = Window(self._training_log_probs, self._scoring.again, position, self.device)
        judged, logps = window.judge(self.objective, batches, self.trainer)
        for found, one, its in zip(judged, logps, batches, strict=True):
            self._enter(found, one, its)
        return window.pull(batches, judged, logps, self.trainer.world_size) * self.trainer.accumulate_grad_batches

    def _training_log_probs(self, batch: PairBatch) -> PairLogProbs:
        logps: PairLogProbs = self(batch, self._training_draw(batch))
        self._check_start(logps)
        return logps

    def _training_draw(self, batch: PairBatch) -> PairDraw:
        return draw_in_training(batch.index, self.global_step, self._seed)

    def _check_start(self, logps: PairLogProbs) -> None:
        if self.global_step == 0 and not self.ledger.entered:
            check_start(self.reference, logps)

    def _enter(self, judged: Judged, logps: PairLogProbs, batch: PairBatch) -> None:
        """Take a micro-batch into the books."""
        self.train_metrics.update(judged.outcome, logps, batch, judged.pull)
        self.ledger.add(judged.outcome, batch)
        self.running.add(judged.outcome, batch)

    def dry_run_loss(self, batch: PairBatch, is_part: bool) -> Tensor:
        """Compute the loss of a micro-batch as ``training_step`` does, without metrics, for ``plan``.

        Args:
            batch: pairs of any content.
            is_part: whether the optimizer step has other parts.
        """
        part = batch if self.objective.needs.rejected else batch.chosen_side()
        if not self.objective.needs.batch_level:
            return self._scoring.charge(part, draw_in_evaluation(part.index), self.running.values).loss
        if not is_part:
            loss: Tensor = self.objective(self(part)).loss
            return loss.sum()
        with torch.no_grad():
            self(part)  # the objective is evaluated on all parts together, and then each part is read again
        return self._scoring.again(part).sum()

    def frozen_models(self) -> list[nn.Module]:
        """Return the models that are read beside the policy and not trained."""
        return frozen_reference(self.reference, self.policy)

    def after_step(self, step: int) -> None:
        """Let the objective's running numbers and a moving reference advance."""
        self.running.advance(self._step_weight, self.trainer.strategy)
        if self.reference is not None:
            self.reference.after_step(self.policy, step)

    def training_values(self, learning_rate: float) -> dict[str, Tensor]:
        """Beside what all modules report: the objective's running numbers, and β at the scale of sums."""
        values = super().training_values(learning_rate)
        values |= {f"running/{name}": value for name, value in self.running.values.items()}
        return values | scale_values(self.betas)

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Take a batch in."""
        self._evaluation.add(self(batch), batch)

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
        values = self._evaluation.close(self.trainer, self.device)
        if not self.trainer.sanity_checking:
            report(self, stage, values, self.global_step or self._loaded_step)

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep, beside the weights, the sums and numbers that a resumed run goes on from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sums"] = sums_of(self.train_metrics, self.ledger, self.trainer.strategy)
        checkpoint["sums_of"] = list(self.train_metrics.names)
        checkpoint["running"] = dict(self.running.values)
        checkpoint["reference"] = {} if self.reference is None else self.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint; see the base class."""
        super().on_load_checkpoint(checkpoint)
        self.running.resume(checkpoint.get("running", {}))
        if self.reference is not None and checkpoint.get("reference"):
            self.reference.load_state_dict(checkpoint["reference"])
        same = checkpoint.get("sums_of") == list(self.train_metrics.names)
        restore_sums(checkpoint["sums"] if same else None, self.train_metrics, self.ledger, self)
