"""Scoring turns a batch into what its objective needs of policy and reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_align.models import Extras, ForwardPass, HeadSum, TokenLogProbs, TokenScores, choose_layout
from lit_align.models.lm_head.patch import base_of, rows_added
from lit_align.models.lm_head.projection import Workspace
from lit_align.models.loading import compile_layers
from lit_align.models.logps.attention import original_attention
from lit_align.models.logps.packing import LayoutName
from lit_align.models.logps.plain import ResponseLogProbs, packed_mask
from lit_align.models.logps.reader import Reader
from lit_align.models.reference.base import Reference
from lit_align.models.score_model import ScoreModel
from lit_align.objectives.base import Objective
from lit_align.types import PairBatch, PairDraw, PairLogProbs, PairScores, PairTokens, RolloutTokens


class Sources:
    """The sources of a run: one for each model, whose layout is chosen on the first batch that it reads.

    What was chosen for a model holds for others of the same architecture. They share the memory of a tile of logits.

    Args:
        how: layout and sizes.
    """

    def __init__(self, how: ForwardPass = ForwardPass()) -> None:
        self.how = how
        self._of: dict[nn.Module, Reader] = {}
        self._found: dict[tuple[object, ...], tuple[LayoutName, int | None]] = {}
        self._said: set[str] = set()
        self._workspace: Workspace | None = None

    def of(self, model: nn.Module, batch: PairBatch) -> TokenLogProbs:
        """The source of a language model's log-probabilities; all processes must ask for their first one together.

        Args:
            model: the policy, or a reference as it is when active.
            batch: real pairs to try layouts on, the first time.

        Raises:
            ValueError: a layout was asked for by name, and it is not exact for this model.
        """
        found = self._reader(model, batch)
        assert isinstance(found, TokenLogProbs)
        return found

    def scores_of(self, model: nn.Module, batch: PairBatch) -> TokenScores:
        """As ``of``, of a score model.

        Args:
            model: a ``ScoreModel``.
            batch: real pairs or responses to try layouts on, the first time.
        """
        found = self._reader(model, batch)
        assert isinstance(found, TokenScores)
        return found

    def _reader(self, model: nn.Module, batch: PairBatch) -> Reader:
        if model not in self._of:
            found = self._fresh(model)
            self._choose(found, batch)
            self._of[model] = found
        return self._of[model]

    def _fresh(self, model: nn.Module) -> Reader:
        if isinstance(model, ScoreModel):
            return TokenScores(model, self.how)
        if self._workspace is None:
            self._workspace = Workspace(self.how.tile_mb)
        return TokenLogProbs(model, self.how, self._workspace)

    def _choose(self, source: Reader, batch: PairBatch) -> None:
        alike = _architecture(source.model)
        if alike in self._found:
            source.use(*self._found[alike])
        else:
            with torch.inference_mode(False):
                choice = choose_layout(source, batch.copied())
            for line in choice.refused:
                if line not in self._said:
                    rank_zero_warn(f"model.forward_pass: {line}")
                    self._said.add(line)
            self._found[alike] = source.layout, source.reach
        if self.how.compile:
            compile_layers(source.model)

    def assume(self, model: nn.Module, layout: LayoutName) -> None:
        """Take a layout for a model without trying it, where there are no weights to try it with."""
        self._of[model] = self._fresh(model)
        self._of[model].use(layout)

    def read(self, model: nn.Module, batch: PairBatch) -> PairTokens:
        """Log-probabilities of a batch under a model; see ``response_log_probs``."""
        return self.of(model, batch)(batch).values

    def scores(self, model: nn.Module, batch: PairBatch) -> PairScores:
        """The score of each response under a score model; see ``TokenScores``."""
        return self.scores_of(model, batch).scores(batch)

    def values(self, model: nn.Module, batch: PairBatch) -> RolloutTokens:
        """What a value model expects before each token of responses, whose batch has a side axis of 1."""
        return self.scores_of(model, batch)(batch)[:, 0]

    def layout(self, model: nn.Module) -> str | None:
        """The layout that a model is read in; None before its first batch."""
        return self._of[model].layout if model in self._of else None

    def keep_only(self, model: nn.Module) -> None:
        """Let go of all models but one, so that their memory is free."""
        self._of = {known: source for known, source in self._of.items() if known is model}


@dataclass(frozen=True)
class Charged:
    """A batch's summed, weighted loss with its graph, and the log-probabilities that it was formed from, without."""

    loss: Tensor
    logps: PairLogProbs


@dataclass(frozen=True)
class Scoring:
    """Log-probabilities of a batch under policy and reference, and nothing that the objective does not need.

    Args:
        objective: says what it needs.
        policy: the model that is trained.
        reference: where the frozen log-probabilities come from; None where none are needed.
        sources: how models are read.
    """

    objective: Objective
    policy: nn.Module
    reference: Reference | None
    sources: Sources = field(default_factory=Sources)

    def __call__(self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor]) -> PairLogProbs:
        """Everything of a batch; the policy's own log-probs carry the gradient if one is recorded.

        Args:
            batch: the pairs.
            draw: see ``PairLogProbs``.
            running: see ``PairLogProbs``.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        frame = self._frame(batch, draw, running)
        return _filled(frame, self.sources.of(self.policy, batch)(batch, self._extras))

    def charge(
        self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor], head_sum: HeadSum | None = None
    ) -> Charged:
        """The loss of a batch under an objective whose loss is a sum over pairs; logits are formed once.

        Args:
            batch: the pairs.
            draw: see ``PairLogProbs``.
            running: see ``PairLogProbs``.
            head_sum: of all portions of one step; None for a batch that is no portion.

        Raises:
            ValueError: the batch lacks what the objective needs.
        """
        frame = self._frame(batch, draw, running)

        def loss_of(pairs: slice, found: ResponseLogProbs) -> Tensor:
            return (self.objective(_filled(frame.rows(pairs), found)).loss * batch.weight[pairs]).sum()

        with rows_added(self.policy):
            charged = self.sources.of(self.policy, batch).charge(batch, loss_of, self._extras, head_sum)
        return Charged(charged.loss, _filled(frame, charged.log_probs))

    def again(self, batch: PairBatch) -> PairTokens:
        """The policy's log-probs alone."""
        with rows_added(self.policy):
            return self.sources.read(self.policy, batch)

    @property
    def _extras(self) -> Extras:
        return Extras(collision=self.objective.needs.collision)

    def _frame(self, batch: PairBatch, draw: PairDraw, running: Mapping[str, Tensor]) -> PairLogProbs:
        """Everything but the policy's own log-probs, which are still zero."""
        prompted = self._beside("prompted", batch.prompted, draw) if self.objective.needs.prompted else None
        mismatched = self._beside("mismatched", batch.mismatched, draw) if self.objective.needs.mismatched else None
        mask = packed_mask(batch)
        return PairLogProbs(
            policy=torch.zeros(mask.shape, device=mask.device),
            reference=self._reference(batch),
            mask=mask,
            prompted=prompted,
            mismatched=mismatched,
            draw=draw,
            margin=batch.margin,
            preference_probability=batch.preference_probability,
            running=running,
        )

    @torch.no_grad()
    def _beside(self, name: str, batch: PairBatch | None, draw: PairDraw) -> PairLogProbs:
        """A batch that takes no gradient, without an adapter's dropout whatever the policy's mode."""
        if batch is None:
            raise ValueError(f"the batch has no {name} pairs; build the data with {name}=True")
        with _without_dropout(self.policy):
            policy = self.sources.read(self.policy, batch)
        return PairLogProbs(policy, self._reference(batch), packed_mask(batch), draw=draw)

    def _reference(self, batch: PairBatch) -> PairTokens | None:
        return None if self.reference is None else self.reference.log_probs(batch)


def _filled(frame: PairLogProbs, found: ResponseLogProbs) -> PairLogProbs:
    return replace(frame, policy=found.values, collision=found.collision)


@contextmanager
def _without_dropout(policy: nn.Module) -> Iterator[None]:
    training = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(training)


def _architecture(model: nn.Module) -> tuple[object, ...]:
    """What decides how a model can be read: two that agree in it differ in the values of their weights alone."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    weights = tuple((name, weight.shape, weight.dtype, weight.device) for name, weight in model.named_parameters())
    return modules, weights, original_attention(model), base_of(model).config.to_json_string()
