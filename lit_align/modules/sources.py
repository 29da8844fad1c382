"""A source gives the log-probabilities of batches under one of a run's models, in the fastest layout that is exact."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_align.models import ForwardPass, TokenLogProbs, TokenScores, choose_layout
from lit_align.models.kernels import compile_layers
from lit_align.models.layout import LayoutName
from lit_align.models.output_head import base_of
from lit_align.models.reader import Reader
from lit_align.models.score_model import ScoreModel
from lit_align.models.segments import original_attention
from lit_align.models.vocabulary import Workspace
from lit_align.types import PairBatch, PairScores, PairTokens, RolloutTokens


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


def _architecture(model: nn.Module) -> tuple[object, ...]:
    """What decides how a model can be read: two that agree in it differ in the values of their weights alone."""
    modules = tuple((name, type(module)) for name, module in model.named_modules())
    weights = tuple((name, weight.shape, weight.dtype, weight.device) for name, weight in model.named_parameters())
    return modules, weights, original_attention(model), base_of(model).config.to_json_string()
