"""The Lightning module of on-policy training: sampled responses, their scores, and an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from typing_extensions import override

from lit_align.metrics.calibration import MatchingDivergence
from lit_align.metrics.figures import draw_matching
from lit_align.metrics.rollouts import REPORTED_METRICS, RolloutMetrics, pairs_of
from lit_align.models import ForwardPass, Loading, LoRA, Reference, adapter_of
from lit_align.models.generation import CachedGenerator, Generator
from lit_align.models.narrow import evaluating
from lit_align.models.sampling import Sampling, mix_seed
from lit_align.models.score_model import ScoreModel, Value
from lit_align.models.scorer import Scorer
from lit_align.modules.base import LitPolicy
from lit_align.modules.build import Builder, freeze_unused
from lit_align.modules.grad_cache import reduce_number
from lit_align.modules.online.checks import OnlineSettings, check_arguments, check_run
from lit_align.modules.online.learner import Accumulator, Learner
from lit_align.modules.online.opponent import Opponent
from lit_align.modules.online.pairs import PairLearner
from lit_align.modules.online.rollout import RolloutBatch, RolloutSampler, rollout_records
from lit_align.modules.online.update import Minibatches, ResponseLearner
from lit_align.modules.reports import prefixed, report, warn_of_rounding
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import reference_of
from lit_align.modules.step_totals import planned_steps, run_data
from lit_align.objectives.base import Needs, Objective
from lit_align.online.objective import OnlineObjective
from lit_align.online.pairing import BestAgainstWorst, PairLabels, ResponsePairing
from lit_align.types import PairBatch


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
        opponent: what responses are compared with, instead of with each other: the reference's share in a mixture with
            the policy, 1 for the reference itself (XPO) and 0 for the policy. Each response meets one of the
            opponent's. Pairs are made of these two; RLHF takes the probability to win as the score (Nash-MD).
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
        opponent: float | None = None,
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
        self.reference = reference_of(objective, reference, adapter)
        from_start = self.reference is not None and self.reference.is_start
        self.opponent = None if opponent is None else Opponent(opponent, self.reference)
        has_opponent = self.opponent is not None
        self.learner: Learner = (
            PairLearner(objective, pairing, labels, micro_batch, from_start, has_opponent)
            if isinstance(objective, Objective)
            else ResponseLearner(objective, pairing, labels, micro_batch, has_opponent)
        )
        self.settings = OnlineSettings(
            self.learner.needs, sampling, responses, epochs, minibatches, micro_batch, eval_responses, has_opponent
        )
        check_arguments(self.settings, value, gradient_clip, forward_pass)
        self.policy_name = policy
        self.objective = objective
        self.score = score
        self.value = value
        self.generator = generator
        self.gradient_clip = gradient_clip
        self.loading = loading
        self.train_matching = MatchingDivergence()
        self.eval_metrics = RolloutMetrics()
        self.eval_matching = MatchingDivergence()
        self.eval_dataset_matching = MatchingDivergence()

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.learner.reset()
        if self.settings.needs.values:
            warn_of_rounding("model.value.loading", self.value.loading)
        check_run(self.settings, self.trainer, self.policy_name, self.loading, self.score)
        if stage == "fit":
            for caution in self.learner.cautions(self.settings.sampling, self.settings.steps):
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
            rate = {} if self.value.learning_rate is None else {"lr": self.value.learning_rate}
            groups.append({"params": [w for w in self.value_model.parameters() if w.requires_grad], **rate})
        return groups

    @property
    @override
    def summed_metrics(self) -> dict[str, Metric]:
        return {"train.": self.train_metrics, "matching.": self.train_matching, **self.learner.summed_metrics}

    @property
    @override
    def data_needs(self) -> Needs:
        return self.learner.data_needs

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
            opponent=self.opponent,
            scores_wins=isinstance(self.learner, ResponseLearner),
        )

    def sample_rollout(self, batch: PairBatch, split: str, count: int, salt: int) -> RolloutBatch:
        """Sample responses to the prompts of a batch, with the policy in evaluation mode."""
        with evaluating(self.policy):
            return self.sampler(batch, split, count, salt)

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        responses = self.sample_rollout(batch, "train", self.settings.responses, self.current_epoch)
        accumulate = self._accumulator(responses, batch)
        for places, most in self._steps(batch, batch_idx):
            accumulate(places, most, lambda loss: self.manual_backward(loss * self.trainer.world_size))

    def _accumulator(self, responses: RolloutBatch, batch: PairBatch) -> Accumulator:
        """Add a rollout to metrics and totals, and return what accumulates the gradient of its prompts."""
        if responses.is_rated:
            self.train_matching.update(*pairs_of(responses.rollout))
        self.step_totals.add_tokens(responses.batch)
        return self.learner.accumulator(self, self.value_model, responses, batch)

    def _steps(self, batch: PairBatch, batch_idx: int) -> Iterator[tuple[list[int], int]]:
        """Take the optimizer steps on a rollout, each when the gradient of what is yielded for it is accumulated.

        Yields:
            The places of this process's prompts in the step, and the largest number of prompts of any process.
        """
        optimizer: Any = self.optimizers()
        scheduler: Any = self.lr_schedulers()
        start, run_seed = self.global_step, run_data(self.trainer).seed
        prompts = reduce_number(int((batch.on_host.weight > 0).sum()), "sum", self.trainer)
        minibatches = Minibatches(prompts, self.settings.minibatches, self.global_rank, self.trainer.world_size)
        for number in range(self.settings.epochs):
            seed = mix_seed(run_seed, self.current_epoch, batch_idx, number)
            for step in zip(minibatches.local(seed), minibatches.most(seed), strict=True):
                optimizer.zero_grad()
                yield step
                optimizer.step()  # calls `on_before_optimizer_step`
                optimizer.zero_grad()  # frees the gradients' memory while the next responses are sampled
                self.after_step(self.global_step)
                scheduler.step()
        self._report_training(start, optimizer)

    @override
    def after_step(self, step: int) -> None:
        super().after_step(step)
        self.learner.after_step(self._step_weight, self.trainer)

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
        return values | self.learner.training_values()

    def _report_training(self, start: int, optimizer: Any) -> None:
        """Report after a rollout in which ``log_every_n_steps`` was passed, and after the last one."""
        trainer: Any = self.trainer
        every, step = trainer.log_every_n_steps, self.global_step
        if (every and start // every != step // every) or step >= self._last_step:
            report(self, "train", self.training_values(optimizer.param_groups[0]["lr"]), step)

    @override
    def forward(self, batch: PairBatch) -> Tensor:
        return self.readers.read(self.policy, batch)[:, 0]

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    @override
    def metric_names(self) -> tuple[str, ...]:
        matching = (f"matching/{name}" for name in ("d1", "d2", "given/d1", "given/d2"))
        return (*REPORTED_METRICS, *matching, *self.learner.metric_names)

    @override
    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        # Samples responses with the same seeds each time, and scores the dataset's own responses if it has pairs.
        split = "test" if self.trainer.testing else "validation"
        responses = self.sample_rollout(batch, split, self.settings.eval_responses, 0)
        self.learner.evaluate(self, self.eval_metrics, responses, batch, split)
        if responses.is_rated:
            self.eval_matching.update(*pairs_of(responses.rollout))
        dataset_pairs = self.sampler.dataset_pairs(batch, split)
        if dataset_pairs is not None:
            self.eval_dataset_matching.update(*dataset_pairs)

    @override
    def on_validation_epoch_start(self) -> None:
        # The values of the last evaluation stay until here, for figures.
        for metric in (self.eval_metrics, self.eval_matching, self.eval_dataset_matching):
            metric.reset()
        self.learner.reset()

    @override
    def evaluation_values(self) -> dict[str, Tensor]:
        matching = prefixed("matching", self.eval_matching) | prefixed("matching/given", self.eval_dataset_matching)
        values = self.eval_metrics.compute() | matching | self.learner.evaluation_values(self.trainer, self.device)
        self.margins = self.learner.margins
        return values

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
        checkpoint["running"] = dict(self.learner.state)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.learner.load(checkpoint.get("running", {}))

    @override
    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        responses = self.sample_rollout(batch, "predict", self.settings.eval_responses, 0)
        return rollout_records(responses, batch, self.settings.eval_responses)
