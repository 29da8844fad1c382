"""The Lightning module of reward modelling: a score head on a language model, and Bradley-Terry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW
from typing_extensions import override

from lit_align.metrics.figures import draw_reliability
from lit_align.metrics.margins import MarginsByLength
from lit_align.metrics.pair_values import SIDES
from lit_align.metrics.reward import OTHER_METRICS, REWARD_METRICS, RewardMetrics
from lit_align.models import ForwardPass, Loading, LoRA, adapter_of
from lit_align.models.export import Form, end_scores, save_score_model
from lit_align.models.lm_head.patch import sparse_embedding_grad
from lit_align.models.narrow import evaluating
from lit_align.models.score_model import ScoreModel, load_trained_score_model
from lit_align.modules.base import LitBase
from lit_align.modules.build import Builder, freeze_unused
from lit_align.modules.grad_cache import backward_now
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import check_fit, longest_pair, refuse_columns
from lit_align.modules.step_totals import run_data
from lit_align.online.bradley_terry import BradleyTerry
from lit_align.types import Outcome, PairBatch, PairScores


class LitReward(LitBase):
    """Trains a reward model on preference pairs.

    The gradient of an optimizer step is the weighted mean over all its pairs, whatever the micro-batches or the number
    of processes.

    Args:
        policy: the language model that gets the head: local folder, hub name, or ``testbed:policy``; a reward
            model to continue with; or the folder of a LoRA adapter of either.
        objective: from scores to the loss.
        loading: how the weights are loaded.
        lora: train a low-rank adapter and the head instead of all weights; leave it out for a policy that is the
            folder of an adapter, which is trained further.
        optimizer: any torch optimizer by class path.
        schedule: of the learning rate.
        forward_pass: how the model is read; this affects time and memory, not the result.
        decay_norms_and_biases: let weight decay act on norms and biases as well.

    Raises:
        ValueError: ``forward_pass.tile_mb`` is set, and there are no logits.
    """

    task: Literal["reward"] = "reward"
    objective: BradleyTerry
    export_name = "reward_model"
    export_note = (
        "the score is read at the last token of the response, its end token; transformers reads it at the last token "
        "that is not the padding token of config and tokenizer, which is why that token has no other role"
    )
    trains_policy = False

    def __init__(
        self,
        policy: str,
        objective: BradleyTerry = BradleyTerry(),
        loading: Loading = Loading(),
        lora: LoRA | None = None,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=1e-5, weight_decay=0.0),
        schedule: Schedule = Cosine(),
        forward_pass: ForwardPass = ForwardPass(),
        decay_norms_and_biases: bool = False,
    ) -> None:
        if forward_pass.tile_mb is not None:
            raise ValueError(
                f"model.forward_pass.tile_mb is {forward_pass.tile_mb}; a reward model has no logits: leave it out"
            )
        adapter, metrics = adapter_of(policy, lora), RewardMetrics(objective.contrast.beta)
        super().__init__(metrics, adapter, optimizer, schedule, forward_pass, decay_norms_and_biases)
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.eval_metrics = RewardMetrics(objective.contrast.beta)
        self.eval_margins = MarginsByLength()

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = run_data(self.trainer)
        if data is None:
            return
        for name, split in data.splits.items():
            if split.unpaired:
                raise ValueError(f"data.{name} has rows with one response; a reward model is trained on pairs")
            refuse_columns(name, split.honoured & {"preference_probability"}, "BradleyTerry")
        if "model" not in self._modules:
            check_fit(data, self.policy_name, self.loading.revision, what=longest_pair(data))

    @override
    def configure_model(self) -> None:
        if "model" not in self._modules:
            self.model: ScoreModel = Builder(self)(self.build_trained_model)
            freeze_unused(self, self.model)
            self.model.train()

    @property
    @override
    def trained_model(self) -> ScoreModel:
        return self.model

    @override
    def build_trained_model(self) -> ScoreModel:
        return load_trained_score_model(self.policy_name, self.loading, self.lora)

    @override
    def draw_figures(self, folder: Path) -> None:
        reliability = self.eval_metrics.reliability
        if float(reliability.sums.sum()) > 0:
            draw_reliability(reliability, float(reliability.error()), folder / "reliability.png")

    @override
    def save_model(
        self, model: nn.Module, folder: Path, weights: dict[str, Any], pad_token: int, form: Form = "merged"
    ) -> None:
        assert isinstance(model, ScoreModel)
        inner = {name.removeprefix("model."): weight for name, weight in weights.items()}
        save_score_model(model, folder, pad_token, inner, form)

    @override
    def read_sequences(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        with evaluating(self.model):
            return end_scores(self.model, sequences)

    # ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────

    @override
    def forward(self, batch: PairBatch) -> PairScores:
        return self.readers.scores(self.model, batch)

    def _outcome(self, batch: PairBatch) -> Outcome:
        return self.objective(self(batch), batch.margin)

    @override
    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        *chunks, last = self.chunks(batch)
        for chunk in chunks:
            backward_now(self._loss(chunk) * self.trainer.world_size)
        return self._loss(last) * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def _loss(self, batch: PairBatch) -> Tensor:
        """Compute the weighted sum of the losses of a chunk, and add it to metrics and totals."""
        with sparse_embedding_grad(self.model):
            outcome = self._outcome(batch)
        self.train_metrics.update(outcome, batch)
        self.step_totals.add(outcome, batch)
        return (outcome.loss * batch.weight).sum()

    def dry_run_loss(self, batch: PairBatch, is_part: bool) -> Tensor:
        """Compute the loss of a micro-batch as ``training_step`` does, without metrics, for ``plan``."""
        return self._outcome(batch).loss.sum()

    def frozen_models(self) -> list[nn.Module]:
        """Return nothing: a reward model is trained without another model."""
        return []

    @property
    @override
    def metric_names(self) -> tuple[str, ...]:
        return (*REWARD_METRICS, *OTHER_METRICS)

    @override
    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        outcome = self._outcome(batch)
        self.eval_metrics.update(outcome, batch)
        self.eval_margins.update(outcome.rewards, batch.lengths, batch.weight)

    @override
    def on_validation_epoch_start(self) -> None:
        self.eval_margins.reset()
        self.eval_metrics.reset()  # the values of the last evaluation stay until here, for figures

    @override
    def evaluation_values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = self.eval_metrics.compute()
        self.margins = self.eval_margins.compute()
        return values

    @override
    def predict_step(self, batch: PairBatch, batch_idx: int) -> list[dict[str, Any]]:
        scores, batch = self(batch).cpu(), batch.on_host
        lengths = batch.lengths
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
