"""On-policy training as a Lightning module: a policy draws responses, a scorer judges them, an objective moves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel
from typing_extensions import override

from lit_align.metrics.calibration import MatchingDivergence
from lit_align.metrics.figures import draw_matching
from lit_align.metrics.rollouts import RolloutMetrics, pairs_of
from lit_align.models import ForwardPass, Loading, LoRA, Reference, load_causal_lm
from lit_align.models.generation import CachedGenerator, Generator, Sampling, mix_seed
from lit_align.models.score_model import ScoreModel, Value
from lit_align.models.scorer import Scorer
from lit_align.modules.build import Builder, build_models, check_state_dict, frozen_reference, trainable_state_dict
from lit_align.modules.lit_module import LitModule
from lit_align.modules.log_probs import LogProbReaders
from lit_align.modules.online.checks import Settings, check_run, check_value, checked_forward_pass
from lit_align.modules.online.rollout import Draw, Drawn, Models, given_pairs, rollout_records
from lit_align.modules.online.update import Minibatches, Sums, Update, batches_of_a_run, tokens_of_rank, weight_groups
from lit_align.modules.reports import check_precision, prefixed, report, warn_of_rounding
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import reference_of
from lit_align.modules.step_totals import run_data, total_over_ranks
from lit_align.online.objective import OnlineObjective
from lit_align.types import PairBatch


class LitOnline(LitModule):
    """Trains a policy on responses that it draws itself.

    A batch of prompts is one rollout: responses are drawn and scored once, then ``epochs`` passes of ``minibatches``
    optimizer steps are taken on them. The random numbers of a response depend on the run's seed, the epoch, the row of
    its prompt and its number alone, so neither micro-batches nor processes change what is drawn.

    Args:
        policy: local folder, hub name, or ``testbed:policy``.
        objective: what is optimised: an ``OnlineObjective``, or a preset such as ``lit_align.online.kl_rlhf``.
        score: what says what a response is worth: ``RewardModel``, ``KnownScore``, ``FunctionScore``.
        reference: where the frozen log-probabilities come from. None chooses: the policy with its adapter off if
            there is an adapter, a frozen copy of the policy otherwise, nothing if the objective needs no reference.
        value: the value model, for an advantage that needs one.
        generator: what writes responses.
        sampling: how they are drawn.
        responses: to each prompt.
        epochs: passes over a rollout.
        minibatches: optimizer steps per pass.
        micro_batch: responses per forward pass of an update, and per pass without gradient.
        eval_responses: to each prompt of an evaluation; two or more give the matching divergence.
        gradient_clip: largest norm of a step's gradient; None for no limit. (The trainer's own clipping does not go
            together with several steps per batch.)
        loading: how the weights are read.
        lora: train a low-rank adapter instead of all weights.
        optimizer: any torch optimizer by class path.
        schedule: how the learning rate moves.
        forward_pass: how log-probabilities are computed; it changes time and memory, not what comes out. How many
            responses go through the policy at once is ``micro_batch``.
    """

    task: Literal["online"] = "online"
    objective: OnlineObjective
    score: Scorer

    def __init__(
        self,
        policy: str,
        objective: OnlineObjective,
        score: Scorer,
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.settings = Settings(objective, sampling, responses, epochs, minibatches, micro_batch, eval_responses)
        if gradient_clip is not None and not gradient_clip > 0:
            raise ValueError(f"model.gradient_clip is {gradient_clip}; expected a number above 0, or null")
        check_value(objective, value)
        self.policy_name = policy
        self.objective = objective
        self.score = score
        self.value = value
        self.generator = generator
        self.gradient_clip = gradient_clip
        self.loading = loading
        self.lora = lora
        self.optimizer = optimizer
        self.schedule = schedule
        self.reference = reference_of(objective, reference, lora)
        self.readers = LogProbReaders(checked_forward_pass(forward_pass))
        self.train_metrics = RolloutMetrics()
        self.train_matching = MatchingDivergence()
        self.eval_metrics = RolloutMetrics()
        self.eval_matching = MatchingDivergence()
        self.eval_given = MatchingDivergence()
        self._tokens = torch.zeros((), dtype=torch.int64)
        self.gradient_norm = torch.zeros(())
        self._loaded_step = 0
        self._total = 0
        self.strict_loading = lora is None

    # ── set-up ──────────────────────────────────────────────────────────────────────────────────────────────────

    def setup(self, stage: str) -> None:
        """Check that everything fits, before any weight is read; say what moves the optimum."""
        check_precision(self.trainer.precision, self.loading, self.lora)
        if self.objective.needs.values:
            warn_of_rounding("model.value.loading", self.value.loading)
        check_run(self.settings, self.trainer, self.policy_name, self.loading, self.score)
        if stage == "fit":
            for caution in self.settings.cautions:
                rank_zero_warn(caution)

    def configure_model(self) -> None:
        """Load the policy, attach the reference, load what scores and what values; every rank does it, once."""
        if "policy" in self._modules:
            return
        build = Builder(self)
        self.policy: PreTrainedModel | PeftModel = build_models(self, self.build_policy, self.reference)
        if self.reference is not None:
            self.reference.read_with(self.readers.read)
        self.value_model: ScoreModel | None = None
        if self.objective.needs.values:
            self.value_model = build(lambda: self.value.load(self.policy_name, self.loading))
        self.score.load(self.policy_name, build, self.readers.scores)
        self.policy.train()

    def build_policy(self) -> PreTrainedModel | PeftModel:
        """The policy as it is before the first step, with its adapter if there is one."""
        model = load_causal_lm(self.policy_name, self.loading)
        return model if self.lora is None else self.lora.wrap(model)

    @property
    @override
    def trained_model(self) -> nn.Module:
        return self.policy

    @override
    def build_trained_model(self) -> nn.Module:
        return self.build_policy()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LitOnline:
        move: Any = super()._apply
        move(fn, recurse)
        if self.reference is not None:
            self.reference.apply(fn)
        self.score.apply(fn)
        return self

    # ── drawing ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _draw(self) -> Draw:
        at_once = self.settings.micro_batch
        greedy = self.objective.needs.greedy
        data = run_data(self.trainer)
        return Draw(data, self.generator, self.settings.sampling, self.score, at_once, greedy, self.readers)

    def draw(self, batch: PairBatch, split: str, each: int, salt: int) -> Drawn:
        """Responses to the prompts of a batch, the policy being in evaluation mode meanwhile.

        Args:
            batch: rows of a split.
            split: which one.
            each: responses to each prompt.
            salt: another one draws other responses.
        """
        training = self.policy.training
        self.policy.eval()
        try:
            return self._draw(Models(self.policy, self.reference, self.value_model), batch, split, each, salt)
        finally:
            self.policy.train(training)

    # ── updates ─────────────────────────────────────────────────────────────────────────────────────────────────

    def training_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Draw once, then take all optimizer steps on what was drawn."""
        before = self.global_step
        drawn = self.draw(batch, "train", self.settings.responses, self.current_epoch)
        experience = self.objective.experience(drawn.rollout)
        self.train_metrics.update(experience, drawn.ended, drawn.texts.responses)
        pairs = pairs_of(drawn.rollout)
        self.train_matching.update(pairs.preferences, pairs.weight)
        tokens = (drawn.batch.attention_mask.sum((1, 2)) * drawn.rollout.weight).sum().long()
        self._tokens = self._tokens.to(self.device) + tokens
        prompts = int(total_over_ranks((batch.weight > 0).sum(), self.trainer.strategy))
        dealt = Minibatches(prompts, self.settings.minibatches, self.global_rank, self.trainer.world_size)
        update = Update(self, drawn, experience, self.settings)
        for number in range(self.settings.epochs):
            seed = mix_seed(run_data(self.trainer).seed, self.current_epoch, batch_idx, number)
            for places, most in zip(dealt.local(seed), dealt.most(seed), strict=True):
                update(places, most)
        self._report_training(before)

    def forward(self, batch: PairBatch) -> Tensor:
        """Log-probabilities of responses under the policy as it is now, ``[rollout, token]``."""
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

    def frozen_models(self) -> list[nn.Module]:
        """Return the models that are read beside policy and value model, and not trained."""
        score_model = self.score.model
        return frozen_reference(self.reference, self.policy) + ([] if score_model is None else [score_model])

    def _report_training(self, before: int) -> None:
        """Report behind a rollout in which ``log_every_n_steps`` was passed, and behind the last."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        step = self.global_step
        if not ((every and before // every != step // every) or step >= self._total):
            return
        values = self.train_metrics.compute() | prefixed("matching", self.train_matching)
        self.train_metrics.reset()
        self.train_matching.reset()
        optimizer: Any = self.optimizers()
        values["learning_rate"] = torch.tensor(optimizer.param_groups[0]["lr"])
        values["grad_norm"] = self.gradient_norm
        values["tokens_seen"] = total_over_ranks(self._tokens, self.trainer.strategy)
        report(self, "train", values, step)

    # ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Draw responses, always the same random numbers; and judge the given responses where there are pairs."""
        self._evaluate(batch, "validation")

    def test_step(self, batch: PairBatch, batch_idx: int) -> None:
        """As in validation."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: PairBatch, split: str) -> None:
        drawn = self.draw(batch, split, self.settings.eval_responses, 0)
        self.eval_metrics.update(self.objective.experience(drawn.rollout), drawn.ended, drawn.texts.responses)
        pairs = pairs_of(drawn.rollout)
        self.eval_matching.update(pairs.preferences, pairs.weight)
        given = given_pairs(self._draw, self.policy, batch, split)
        if given is not None:
            self.eval_given.update(given.preferences, given.weight)

    def on_validation_epoch_start(self) -> None:
        """Begin with empty sums; they stay until the next evaluation, for figures."""
        for metric in (self.eval_metrics, self.eval_matching, self.eval_given):
            metric.reset()

    def on_test_epoch_start(self) -> None:
        """As in validation."""
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Report the sums of all responses drawn for validation prompts."""
        self._report_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Report the sums of all responses drawn for test prompts."""
        self._report_evaluation("test")

    def _report_evaluation(self, stage: str) -> None:
        values = self.eval_metrics.compute() | prefixed("matching", self.eval_matching)
        values |= prefixed("matching/given", self.eval_given)
        if not self.trainer.sanity_checking:
            report(self, stage, values, self.global_step or self._loaded_step)

    @override
    def draw_figures(self, folder: Path) -> None:
        panels = {"own responses": self.eval_matching, "given responses": self.eval_given}
        evaluated = {name: metric for name, metric in panels.items() if float(metric.sums[0]) > 0}
        if evaluated:
            draw_matching(evaluated, folder / "matching.png")

    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One record per prompt: the responses that were drawn, with score, log-probability and length of each."""
        drawn = self.draw(batch, "predict", self.settings.eval_responses, 0)
        return rollout_records(drawn, batch, self.settings.eval_responses)

    # ── optimizer, state ────────────────────────────────────────────────────────────────────────────────────────

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over what trains of policy and value model, and its schedule per optimizer step."""
        optimizer = self.optimizer(weight_groups(self.policy, self.value_model, self.value.learning_rate))
        total = self._total = self.planned_steps
        scheduler = LambdaLR(optimizer, lambda step: self.schedule.factor(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    @override
    def planned_steps(self) -> int:
        return batches_of_a_run(self.trainer, self.settings.steps) * self.settings.steps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone where there is one, and the sums that a resumed run goes on from."""
        checkpoint["state_dict"] = trainable_state_dict(self, self.lora, checkpoint["state_dict"])
        checkpoint["reference"] = {} if self.reference is None else self.reference.state_dict()
        checkpoint["sums"] = self._sums.state(self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rank zero takes the sums over; the others go on from nothing, so the totals are right.

        Raises:
            ValueError: the checkpoint's weights are not those of an adapter like this one.
        """
        check_state_dict(self, self.lora, checkpoint["state_dict"])
        if self.reference is not None and checkpoint.get("reference"):
            self.reference.load_state_dict(checkpoint["reference"])
        self._loaded_step = int(checkpoint["global_step"])
        saved: Mapping[str, Tensor] = checkpoint["sums"]
        self._tokens = tokens_of_rank(saved, self.global_rank)
        if self.global_rank == 0:
            self._sums.restore(saved, self.device)

    @property
    def _sums(self) -> Sums:
        return Sums({"train": self.train_metrics, "matching": self.train_matching}, self._tokens)
