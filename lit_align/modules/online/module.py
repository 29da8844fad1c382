"""The Lightning module of on-policy training: sampled responses, their scores, and an objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from typing_extensions import override

from lit_align.metrics import PairMetrics
from lit_align.metrics.calibration import MatchingDivergence
from lit_align.metrics.figures import draw_matching
from lit_align.metrics.margins import MarginsByLength
from lit_align.metrics.rollouts import REPORTED_METRICS, RolloutMetrics, pairs_of
from lit_align.models import ForwardPass, Loading, LoRA, Reference, adapter_of
from lit_align.models.generation import CachedGenerator, Generator, Sampling, mix_seed
from lit_align.models.score_model import ScoreModel, Value
from lit_align.models.scorer import Scorer
from lit_align.modules.base import LitPolicy
from lit_align.modules.build import Builder, freeze_unused
from lit_align.modules.global_batch import Evaluation
from lit_align.modules.objective_state import ObjectiveState
from lit_align.modules.online.checks import OnlineSettings, check_arguments, check_pairing, check_run
from lit_align.modules.online.pairs import PairAccumulator, PairMaker, RolloutPairs
from lit_align.modules.online.rollout import RolloutBatch, RolloutSampler, rollout_records
from lit_align.modules.online.update import GradientAccumulator, Minibatches
from lit_align.modules.pair_loss import PairLoss
from lit_align.modules.reports import prefixed, report, warn_of_rounding
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import reference_of
from lit_align.modules.step_totals import planned_steps, run_data, total_over_ranks
from lit_align.objectives.base import Needs, Objective
from lit_align.objectives.pair_seed import evaluation_pair_seed, training_pair_seed
from lit_align.online.objective import OnlineObjective
from lit_align.online.pairing import BestAgainstWorst, PairLabels, ResponsePairing
from lit_align.types import LossOutput, PairBatch, PairSeed


class LitOnline(LitPolicy):
    """Trains a policy on responses that it samples itself: by RLHF, or by direct alignment on pairs of them.

    A batch of prompts is one rollout: responses are sampled and scored once, then ``epochs`` passes of ``minibatches``
    optimizer steps are taken on them. The random numbers of a response depend on the run's seed, the epoch, the row of
    its prompt and its number alone, so neither micro-batches nor processes change the samples.

    With a preference objective, the responses to a prompt make pairs, by their scores. ``minibatches`` and ``epochs``
    decide how long a policy's responses are trained on: with one step per rollout every pair is the current policy's,
    with several the rollout is a pool of the policy's before them.

    Args:
        policy: local folder, hub name, or ``testbed:policy``; or the folder of a LoRA adapter.
        objective: an ``OnlineObjective``, or a preset such as ``lit_align.online.kl_rlhf``; or any objective of
            preference pairs, such as ``lit_align.objectives.sr_dpo``.
        score: rates the responses: ``RewardModel``, ``KnownScore``, ``FunctionScore``, ``JudgeScore``.
        pairing: which responses to a prompt are compared, for a preference objective.
        labels: what the scores of a pair say to a preference objective.
        reference: where the frozen log-probabilities come from. None uses the policy with its adapter off if there is
            a new adapter, a frozen copy of the policy otherwise (of a saved adapter, on the same base weights), and
            nothing if the objective needs no reference.
        value: the value model, for an advantage that needs one.
        generator: generates the responses.
        sampling: how they are sampled.
        responses: to each prompt.
        epochs: passes over a rollout.
        minibatches: optimizer steps per pass.
        micro_batch: responses per forward pass of an update, and per pass without gradient.
        eval_responses: to each prompt of an evaluation; two or more give the matching divergence.
        gradient_clip: largest norm of a step's gradient; None for no limit. (The trainer's own clipping does not
            support several steps per batch.)
        loading: how the weights are loaded.
        lora: train a low-rank adapter instead of all weights; leave it out for a policy that is the folder of an
            adapter, which is trained further.
        optimizer: any torch optimizer by class path.
        schedule: of the learning rate.
        forward_pass: how log-probabilities are computed; this affects time and memory, not the result. The number of
            responses that go through the policy at once is ``micro_batch``.
        decay_norms_and_biases: let weight decay act on norms and biases as well.
    """

    task: Literal["online"] = "online"
    objective: OnlineObjective | Objective
    score: Scorer

    def __init__(
        self,
        policy: str,
        objective: OnlineObjective | Objective,
        score: Scorer,
        pairing: ResponsePairing = BestAgainstWorst(),
        labels: PairLabels = PairLabels(),
        reference: Reference | None = None,
        value: Value = Value(),
        generator: Generator = CachedGenerator(),
        sampling: Sampling = Sampling(),
        responses: int = 1,
        epochs: int = 1,
        minibatches: int = 1,
        micro_batch: int = 16,
        eval_responses: int = 2,
        gradient_clip: float | None = 1.0,
        loading: Loading = Loading(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-6, weight_decay=0.0),
        schedule: Schedule = Cosine(),
        forward_pass: ForwardPass = ForwardPass(),
        decay_norms_and_biases: bool = False,
    ) -> None:
        adapter = adapter_of(policy, lora)
        super().__init__(RolloutMetrics(), adapter, optimizer, schedule, forward_pass, decay_norms_and_biases)
        self.automatic_optimization = False
        self.settings = OnlineSettings(
            objective, sampling, responses, epochs, minibatches, micro_batch, eval_responses
        )
        check_arguments(self.settings, value, gradient_clip, forward_pass)
        check_pairing(objective, pairing, labels)
        self.policy_name = policy
        self.objective = objective
        self.score = score
        self.value = value
        self.generator = generator
        self.gradient_clip = gradient_clip
        self.loading = loading
        self.reference = reference_of(objective, reference, adapter)
        self.train_matching = MatchingDivergence()
        self.eval_metrics = RolloutMetrics()
        self.eval_matching = MatchingDivergence()
        self.eval_dataset_matching = MatchingDivergence()
        self.direct = isinstance(objective, Objective)
        self.pairing, self.labels = pairing, labels
        if isinstance(objective, Objective):
            from_start = self.reference is not None and self.reference.is_start
            self.train_pairs = PairMetrics(objective, from_start)
            self.eval_pairs = PairMetrics(objective, from_start)
            self.objective_state = ObjectiveState(objective)
            self._pair_evaluation = Evaluation(objective, self.eval_pairs, MarginsByLength())

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.settings.needs.values:
            warn_of_rounding("model.value.loading", self.value.loading)
        check_run(self.settings, self.trainer, self.policy_name, self.loading, self.score)
        if stage == "fit":
            for caution in self.settings.cautions:
                rank_zero_warn(caution)

    @override
    def configure_model(self) -> None:
        if "policy" in self._modules:
            return
        super().configure_model()
        build = Builder(self)
        self.value_model: ScoreModel | None = None
        if self.settings.needs.values:
            self.value_model = build(lambda: self.value.load(self.policy_name, self.loading))
            freeze_unused(self, self.value_model)
        self.score.load(self.policy_name, build, self.readers.scores)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LitOnline:
        super()._apply(fn, recurse)
        self.score.apply(fn)
        return self

    @override
    def trained_models(self) -> dict[str, nn.Module]:
        values = {} if self.value_model is None else {"the value model": self.value_model}
        return super().trained_models() | values

    @override
    def frozen_models(self) -> list[nn.Module]:
        return super().frozen_models() + ([] if self.score.model is None else [self.score.model])

    @property
    @override
    def planned_steps(self) -> int:
        return planned_steps(self.trainer, self.settings.steps)

    @override
    def parameter_groups(self) -> list[Any]:
        groups: list[Any] = [{"params": [weight for weight in self.policy.parameters() if weight.requires_grad]}]
        if self.value_model is not None:
            rate = self.value.learning_rate
            weights = [weight for weight in self.value_model.parameters() if weight.requires_grad]
            groups.append({"params": weights, **({} if rate is None else {"lr": rate})})
        return groups

    @property
    @override
    def summed_metrics(self) -> dict[str, Metric]:
        pairs = {"pairs.": self.train_pairs} if self.direct else {}
        return {"train.": self.train_metrics, "matching.": self.train_matching, **pairs}

    @property
    @override
    def data_needs(self) -> Needs:
        return Needs(prompted=isinstance(self.objective, Objective) and self.objective.needs.prompted)

    # ── training ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def sampler(self) -> RolloutSampler:
        """The maker of this run's rollouts."""
        return RolloutSampler(
            data=run_data(self.trainer),
            policy=self.policy,
            reference=self.reference,
            value_model=self.value_model,
            readers=self.readers,
            generator=self.generator,
            sampling=self.settings.sampling,
            score=self.score,
            micro_batch=self.settings.micro_batch,
            needs_greedy=self.settings.needs.greedy,
        )

    def sample_rollout(self, batch: PairBatch, split: str, count: int, salt: int) -> RolloutBatch:
        """Sample responses to the prompts of a batch, with the policy in evaluation mode.

        Args:
            batch: rows of a split.
            split: the name of the split.
            count: responses to each prompt.
            salt: part of the seed of each response.
        """
        training = self.policy.training
        self.policy.eval()
        try:
            return self.sampler(batch, split, count, salt)
        finally:
            self.policy.train(training)

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        start = self.global_step
        responses = self.sample_rollout(batch, "train", self.settings.responses, self.current_epoch)
        accumulate = self._accumulator(responses, batch)
        if not self.score.compares:
            pairs = pairs_of(responses.rollout)
            self.train_matching.update(pairs.preferences, pairs.weight)
        self.step_totals.add_tokens(responses.batch)
        prompts = int(total_over_ranks((batch.weight > 0).sum(), self.trainer.strategy))
        minibatches = Minibatches(prompts, self.settings.minibatches, self.global_rank, self.trainer.world_size)
        for number in range(self.settings.epochs):
            seed = mix_seed(run_data(self.trainer).seed, self.current_epoch, batch_idx, number)
            for places, most in zip(minibatches.local(seed), minibatches.most(seed), strict=True):
                self._take_step(accumulate, places, most)
        self._report_training(start)

    def _accumulator(self, responses: RolloutBatch, batch: PairBatch) -> GradientAccumulator | PairAccumulator:
        """Add the samples to the metrics, and return what accumulates the gradient of some prompts."""
        if not isinstance(self.objective, OnlineObjective):
            self.train_metrics.update(responses.rollout, responses.ended, responses.texts.responses)
            pairs = self._pairs(responses, batch, "train", self.current_epoch)
            self.train_metrics.add({"paired": pairs.paired}, (batch.weight > 0).float())
            seed = run_data(self.trainer).seed * 1_000_003
            return PairAccumulator(
                self.pair_loss, pairs, lambda: (seed + self.global_step) * 4099 + self.global_rank, self._record
            )
        experience = self.objective.experience(responses.rollout)
        self.train_metrics.update(responses.rollout, responses.ended, responses.texts.responses, experience)
        return GradientAccumulator(
            objective=self.objective,
            policy=self.policy,
            value_model=self.value_model,
            readers=self.readers,
            metrics=self.train_metrics,
            totals=self.step_totals,
            responses=responses,
            experience=experience,
            count=self.settings.responses,
            micro_batch=self.settings.micro_batch,
        )

    # ── pairs ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def pair_loss(self) -> PairLoss:
        """What computes the loss of pairs, for a preference objective."""
        return PairLoss(self.policy, self.reference, self.readers, self.objective_state, self._pair_seed)

    def _pairs(self, responses: RolloutBatch, batch: PairBatch, split: str, salt: int) -> RolloutPairs:
        make = PairMaker(
            data=run_data(self.trainer),
            needs=self.pair_loss.state.objective.needs,
            pairing=self.pairing,
            labels=self.labels,
            micro_batch=max(1, self.settings.micro_batch // 2),
            trainer=self.trainer,
        )
        return make(responses, batch, split, salt)

    def _pair_seed(self, batch: PairBatch) -> PairSeed:
        if self.training:
            return training_pair_seed(batch.index, self.global_step, run_data(self.trainer).seed)
        return evaluation_pair_seed(batch.index)

    def _record(self, output: LossOutput, batch: PairBatch) -> None:
        """Add a micro-batch of pairs to metrics and totals."""
        assert output.outcome is not None
        self.train_pairs.update(output.outcome, output.logps, batch, output.grad_logps)
        self.step_totals.add_losses(output.outcome.loss.detach(), batch.index, batch.weight.sum())
        self.objective_state.add(output.outcome, batch)

    @override
    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.direct:
            self.objective_state.advance(self._step_weight, self.trainer.strategy)

    def _take_step(self, accumulate: GradientAccumulator | PairAccumulator, places: list[int], most: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        accumulate(places, most, lambda loss: self.manual_backward(loss * self.trainer.world_size))
        optimizer.step()  # calls `on_before_optimizer_step`
        optimizer.zero_grad()  # frees the gradients' memory while the next responses are sampled
        self.after_step(self.global_step)
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.gradient_clip is not None:
            gradients = [weight.grad for weight in self.parameters() if weight.grad is not None]
            torch._foreach_mul_(gradients, min(1.0, self.gradient_clip / (self._norm + 1e-6)))

    @override
    def training_values(self, learning_rate: float) -> dict[str, Tensor]:
        values = super().training_values(learning_rate) | prefixed("matching", self.train_matching)
        self.train_matching.reset()
        if self.direct:
            values |= self.train_pairs.compute()
            self.train_pairs.reset()
            values |= {f"running/{name}": value for name, value in self.objective_state.values.items()}
        return values

    def _report_training(self, start: int) -> None:
        """Report after a rollout in which ``log_every_n_steps`` was passed, and after the last one."""
        trainer: Any = self.trainer
        every, step = trainer.log_every_n_steps, self.global_step
        if (every and start // every != step // every) or step >= self._last_step:
            optimizer: Any = self.optimizers()
            report(self, "train", self.training_values(optimizer.param_groups[0]["lr"]), step)

    @override
    def forward(self, batch: PairBatch) -> Tensor:
        return self.readers.read(self.policy, batch)[:, 0]

    def dry_run_loss(self, batch: PairBatch) -> Tensor:
        """Compute a loss that takes the memory of an update's, for ``plan``.

        The objective's own arithmetic, which is left out, takes a few numbers per token.

        Args:
            batch: responses of any content, side axis of 1.
        """
        loss = self.readers.of(self.policy, batch).fused_loss(batch, lambda responses, logps: logps.policy.sum()).loss
        if self.value_model is not None:
            loss = loss + self.readers.values(self.value_model, batch).sum()
        return loss

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    @override
    def metric_names(self) -> tuple[str, ...]:
        own = self.eval_pairs.names if self.direct else ()
        return (*REPORTED_METRICS, *(f"matching/{name}" for name in ("d1", "d2", "given/d1", "given/d2")), *own)

    @override
    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "validation")

    @override
    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: PairBatch, split: str) -> None:
        """Sample responses with the same seeds each time, and score the dataset's own responses if it has pairs."""
        responses = self.sample_rollout(batch, split, self.settings.eval_responses, 0)
        if isinstance(self.objective, OnlineObjective):
            experience = self.objective.experience(responses.rollout)
            self.eval_metrics.update(responses.rollout, responses.ended, responses.texts.responses, experience)
        else:
            self.eval_metrics.update(responses.rollout, responses.ended, responses.texts.responses)
            made = self._pairs(responses, batch, split, 0)
            self.eval_metrics.add({"paired": made.paired}, (batch.weight > 0).float())
            for part in made.batches(range(len(made.by_prompt))):
                self._pair_evaluation.update(self.pair_loss.log_probs(part), part)
        if not self.score.compares:
            pairs = pairs_of(responses.rollout)
            self.eval_matching.update(pairs.preferences, pairs.weight)
        dataset_pairs = self.sampler.dataset_pairs(batch, split)
        if dataset_pairs is not None:
            self.eval_dataset_matching.update(dataset_pairs.preferences, dataset_pairs.weight)

    @override
    def on_validation_epoch_start(self) -> None:
        # The values of the last evaluation stay until here, for figures.
        for metric in (self.eval_metrics, self.eval_matching, self.eval_dataset_matching):
            metric.reset()
        if self.direct:
            self._pair_evaluation.reset()

    @override
    def evaluation_values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = self.eval_metrics.compute() | prefixed("matching", self.eval_matching)
        values |= prefixed("matching/given", self.eval_dataset_matching)
        return values | (self._pair_evaluation.compute(self.trainer, self.device) if self.direct else {})

    @override
    def draw_figures(self, folder: Path) -> None:
        panels = {"own responses": self.eval_matching, "given responses": self.eval_dataset_matching}
        evaluated = {name: metric for name, metric in panels.items() if float(metric.sums[0]) > 0}
        if evaluated:
            draw_matching(evaluated, folder / "matching.png")

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.direct:
            checkpoint["running"] = dict(self.objective_state.values)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.direct:
            self.objective_state.load(checkpoint.get("running", {}))

    @override
    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        responses = self.sample_rollout(batch, "predict", self.settings.eval_responses, 0)
        return rollout_records(responses, batch, self.settings.eval_responses)
