"""What callbacks and commands ask of a module, answered by each module for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_align.models import Loading, LoRA, Reference, SavedAdapter
from lit_align.models.export import Form, token_log_probs
from lit_align.models.narrow import evaluating
from lit_align.models.scorer import Scorer
from lit_align.models.sharding import is_sharded
from lit_align.modules.log_probs import LogProbReaders
from lit_align.modules.step_totals import planned_steps
from lit_align.objectives.base import Needs
from lit_align.objectives.beta_scale import BetaReading


class LitModule(LightningModule):
    """A module that trains one model; the defaults are those of a module that trains a policy on a dataset's pairs."""

    task: Literal["preference", "reward", "online"]
    policy_name: str
    objective: Any
    loading: Loading
    lora: LoRA | SavedAdapter | None
    readers: LogProbReaders
    reference: Reference | None = None
    score: Scorer | None = None
    betas: tuple[BetaReading, ...] = ()
    margins: Mapping[str, Any] = MappingProxyType({})
    """Reward margins by length of the last evaluation; see ``MarginsByLength``. Empty without pairs."""
    export_name: ClassVar[str] = "policy"
    """Name of the exported folder."""
    export_note: ClassVar[str] = ""
    """A line for the model card on how to use the exported model."""
    trains_policy: ClassVar[bool] = True
    """Whether the trained model generates responses."""

    @property
    def trained_model(self) -> nn.Module:
        """The model that is trained and exported."""
        raise NotImplementedError

    def build_trained_model(self) -> nn.Module:
        """Build the trained model as it is before the first step, with its adapter if there is one."""
        raise NotImplementedError

    def check_models(self) -> None:
        """Check the trained models on short rows, once; nothing by default."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that training and evaluation may report, without ``train/`` and ``val/``."""
        return ()

    @property
    def standard_errors(self) -> Mapping[str, tuple[float, float]]:
        """Of the last evaluation: name to what it is the mean of, as a number, and its standard error, where known."""
        return {}

    @property
    def planned_steps(self) -> int:
        """Optimizer steps of the whole fit."""
        return planned_steps(self.trainer)

    @property
    def data_needs(self) -> Needs:
        """What the objective needs of the data beside the pairs."""
        return Needs()

    def read_sequences(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Compute what an exported folder is compared with: numbers of the trained model, in evaluation mode.

        All processes must call it together where the model is sharded.
        """
        with evaluating(self.trained_model):
            return token_log_probs(self.trained_model, sequences)

    @property
    def rounds(self) -> bool:
        """Whether the trained model is read in bfloat16, by its weights or because its layers are gathered in it."""
        dtypes = {parameter.dtype for parameter in self.trained_model.parameters()}
        gathers = is_sharded(self.trained_model) and self.trainer.precision == "bf16-mixed"
        return torch.bfloat16 in dtypes or gathers

    def draw_figures(self, folder: Path) -> None:
        """Draw what was evaluated last; nothing by default."""
        return

    def save_model(
        self, model: nn.Module, folder: Path, weights: dict[str, Any], pad_token: int, form: Form = "merged"
    ) -> None:
        """Write a Hugging Face folder.

        Args:
            model: the trained model or an unsharded copy of it; ``merged`` changes its weights.
            folder: to write to.
            weights: of the model, by their names in it.
            pad_token: id of padding.
            form: of a model with an adapter: ``merged`` adds it to the weights, ``adapter`` writes it alone.
        """
        raise NotImplementedError
