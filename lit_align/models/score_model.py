"""Score models: the body of a causal language model with a linear head that gives one number per token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lit_align.compat.peft import PeftModel
from lit_align.errors import check_trainable
from lit_align.locate import locate_model
from lit_align.models.adapters import LoRA, SavedAdapter, merge, saved_adapter
from lit_align.models.loading import (
    Loading,
    build_model,
    describe_problems,
    finish_model,
    read_config,
    switch_dropout_off,
)
from lit_align.models.sharding import weights_wanted


class ScoreModel(nn.Module):
    """A Hugging Face sequence classification model of one label, read at every token.

    The caller, who has the mask, chooses the position that counts: the library's own pooling takes the last id that is
    not padding, which is wrong where the padding is the end token; see `lit_align.models.export.pooling_pad`.

    Args:
        model: with a head named ``score``, with or without adapter.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    @property
    def rows(self) -> int:
        """Number of ids that the embedding has a row for."""
        embedding: Any = self.model.get_input_embeddings()
        return len(embedding.weight)

    def forward(self, **inputs: Any) -> Float[Tensor, "row token"]:
        """Compute the head's number at every token, in float32 (float64 for float64 models)."""
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        hidden = model.base_model(**inputs, use_cache=False)[0]
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = model.score(hidden.to(next(model.score.parameters()).dtype)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


Head = Literal["saved", "fresh", "zero"]
"""Where the head's weights come from: the saved ones, random ones, or 0."""
_LAYER = "score"
HEAD = f"{_LAYER}.weight"


def load_score_model(name: str, loading: Loading, head: Head = "saved") -> ScoreModel:
    """Load a score model without dropout, in evaluation mode; with its adapter, frozen, if it has one.

    Args:
        name: local folder, hub name, or ``testbed:policy``; a language model, or one that has a head already; or the
            folder of an adapter of either.
        loading: dtype, revision and so on; those of the base model where the folder holds an adapter.
        head: see ``load_trained_score_model``.
    """
    adapter, model = saved_adapter(name), _load_base(name, loading, head)
    return ScoreModel(model if adapter is None else adapter.wrap(model, _LAYER, trains=False).eval())


def load_trained_score_model(
    name: str, loading: Loading, adapter: LoRA | SavedAdapter | None, head: Head = "fresh"
) -> ScoreModel:
    """Load a score model that is trained: all of it, or an adapter and the head.

    Args:
        name: as of ``load_score_model``.
        loading: as of ``load_score_model``.
        adapter: see ``adapter_of``; None trains all weights.
        head: ``saved`` refuses a folder without a head; ``fresh`` samples one from N(0, 1 / (d + 1)), and ``zero``
            sets it to 0, unless a head is saved.

    Raises:
        ValueError: all weights would be trained, and are to be quantized.
    """
    check_trainable("model.loading", loading.quantization, adapter)
    model = _load_base(name, loading, head)
    return ScoreModel(model if adapter is None else adapter.wrap(model, _LAYER))


def _load_base(name: str, loading: Loading, head: Head) -> PreTrainedModel:
    """Load a score model without the adapter that a folder may hold.

    Raises:
        FileNotFoundError: the model does not exist; see ``locate_model``.
        ValueError: the weights are damaged, incomplete or not finite, or the architecture has no linear head without
            bias.
    """
    adapter = saved_adapter(name)
    if adapter is not None and adapter.holds(_LAYER):
        head = "zero"  # is replaced
    place, config = locate_model(name), read_config(name, loading.revision)
    switch_dropout_off(config)
    config.num_labels = 1
    config.problem_type = None
    with torch.random.fork_rng(devices=[]), only_errors_logged():
        model, problems = build_model(AutoModelForSequenceClassification, place, config, loading)
    if "mismatched_keys" in problems:
        raise ValueError(f"{place}: weights of other shapes: {problems['mismatched_keys']}")
    missing = set(problems.get("missing_keys", ()))
    body = f"{model.base_model_prefix}."
    unknown = [name for name in problems.get("unexpected_keys", ()) if name.startswith(body)]  # not an output head
    if unknown:
        raise ValueError(f"{place}: {describe_problems({'unexpected_keys': unknown})}")
    layer = getattr(model, "score", None)
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        raise ValueError(f"{place}: {type(model).__name__} has no linear score head without bias on a causal body")
    if weights_wanted() and (HEAD in missing or loading.weights == "random"):
        if head == "saved":
            raise ValueError(f"{name} is no reward model: it has no score head ({HEAD}); train one with task: reward")
        _initialize(layer, head, loading.seed)
    if missing - {HEAD}:
        raise ValueError(f"{place}: the weights do not fill the model: {sorted(missing - {HEAD})}")
    return finish_model(model, place, loading)


@contextmanager
def only_errors_logged() -> Iterator[None]:
    """Silence the library's report of missing weights, where a missing head is expected and others are errors."""
    logs: Any = transformers.utils.logging
    verbosity = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)


@torch.no_grad()
def _initialize(layer: nn.Linear, head: Head, seed: int) -> None:
    if head == "zero":
        layer.weight.zero_()
        return
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features + 1)
    layer.weight.copy_(noise)


@dataclass(frozen=True)
class Value:
    """The value model of actor-critic training: a separate body with a head that starts at 0.

    All of its weights are trained; an adapter that it is loaded with is merged into them first.

    Args:
        path: local folder or hub name of a language model or a reward model, or the folder of an adapter of one; None
            takes the policy's.
        loading: how it is loaded.
        learning_rate: of its weights; None for the optimizer's own.
    """

    path: str | None = None
    loading: Loading = field(default_factory=Loading)
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"Value: learning_rate is {self.learning_rate}; expected a number above 0")
        check_trainable("model.value.loading", self.loading.quantization, None)

    def load(self, policy: str, loading: Loading) -> ScoreModel:
        """Load the model, in training mode.

        Args:
            policy: name of the policy, which it starts from unless it has a path of its own.
            loading: how the policy is loaded; a value model that starts from the policy takes the same revision.
        """
        revision = self.loading.revision or (loading.revision if self.path is None else None)
        model = load_score_model(self.path or policy, replace(self.loading, revision=revision), head="zero")
        if isinstance(model.model, PeftModel):
            model = ScoreModel(merge(model.model)).requires_grad_(True)
        return model.train()
