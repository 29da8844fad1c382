"""Reward modelling as a Lightning module: a score head on a language model, and Bradley-Terry."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW
from typing_extensions import override

from lit_align.metrics.figures import draw_reliability
from lit_align.metrics.reward import RewardMetrics
from lit_align.models import ForwardPass, Loading, LoRA
from lit_align.models.lm_head.patch import sparse_embedding_grad
from lit_align.models.score_model import ScoreModel, load_score_model, save_score_model
from lit_align.modules.base import LitBase
from lit_align.modules.build import Builder
from lit_align.modules.grad_cache import backward_now
from lit_align.modules.reports import check_precision, report, restore_sums, sums_of
from lit_align.modules.schedule import Cosine, Schedule
from lit_align.modules.setup_checks import TokenSizes, check_fit
from lit_align.modules.step_totals import run_data
from lit_align.online.bradley_terry import BradleyTerry
from lit_align.types import Outcome, PairBatch, PairScores

SIDES = ("chosen", "rejected")


class LitReward(LitBase):
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
        forward_pass: how the model is read; it changes time and memory, not what comes out.

    Raises:
        ValueError: ``forward_pass.tile_mb`` is set, and there are no logits.
    """

    task: Literal["reward"] = "reward"
    objective: BradleyTerry
    export_name = "reward_model"
    export_note = (
        "the score is read at the last token of the response, its end token; a batch padded with that same token must "
        "be read through the attention mask, not by the library's own pooling"
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
    ) -> None:
        if forward_pass.tile_mb != ForwardPass().tile_mb:
            raise ValueError(
                f"model.forward_pass.tile_mb is {forward_pass.tile_mb}; a reward model has no logits: leave it out"
            )
        super().__init__(RewardMetrics(objective.contrast.beta), lora, optimizer, schedule, forward_pass)
        self.policy_name = policy
        self.objective = objective
        self.loading = loading
        self.eval_metrics = RewardMetrics(objective.contrast.beta)

    def setup(self, stage: str) -> None:
        """Check that model and data fit, before any weight is read."""
        self.step_totals.reset()
        check_precision(self.trainer.precision, self.loading, self.lora)
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
        inner: Any = model.model
        return model if self.lora is None else ScoreModel(self.lora.wrap(inner, head="score"))

    @property
    @override
    def trained_model(self) -> ScoreModel:
        return self.model

    @override
    def build_trained_model(self) -> ScoreModel:
        return self.build_model()

    @override
    def draw_figures(self, folder: Path) -> None:
        reliability = self.eval_metrics.reliability
        if float(reliability.sums.sum()) > 0:
            draw_reliability(reliability, float(reliability.error()), folder / "reliability.png")

    @override
    def save_model(
        self,
        model: nn.Module,
        folder: Path,
        weights: dict[str, Any],
        pad_token: int,
        form: Literal["merged", "adapter"] = "merged",
    ) -> None:
        assert isinstance(model, ScoreModel)
        inner = {name.removeprefix("model."): weight for name, weight in weights.items()}
        save_score_model(model, folder, pad_token, inner, form)

    # ── the flow ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(self, batch: PairBatch) -> PairScores:
        """The scores of both sides, in one forward pass."""
        return self.readers.scores(self.model, batch)

    def _outcome(self, batch: PairBatch) -> Outcome:
        return self.objective(self(batch), batch.margin)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Sum of the weighted losses; ``on_before_optimizer_step`` divides by the weight of the whole step."""
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
        """Compute the loss of a micro-batch as ``training_step`` does, without metrics, for ``plan``.

        Args:
            batch: pairs of any content.
            is_part: whether the optimizer step has other parts; without effect, since pairs are independent.
        """
        return self._outcome(batch).loss.sum()

    def frozen_models(self) -> list[nn.Module]:
        """Return nothing: a reward model is trained without another model."""
        return []

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

    # ── state ───────────────────────────────────────────────────────────────────────────────────────────────────

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep, beside the weights, the sums that a resumed run goes on from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sums"] = sums_of(self.train_metrics, self.step_totals, self.trainer.strategy)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint; see the base class."""
        super().on_load_checkpoint(checkpoint)
        restore_sums(checkpoint.get("sums"), self.train_metrics, self.step_totals, self)
