"""A score model is the body of a causal language model with a linear head that gives one number per token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from jaxtyping import Float
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from lit_align.models.loading import Loading, LoRA, locate, switch_dropout_off, use_liger
from lit_align.models.sharding import weights_wanted


class ScoreModel(nn.Module):
    """A Hugging Face sequence classification model of one label, read at every token.

    The position that counts is chosen by whoever has the mask: the library's own pooling looks for the last id that
    is not padding, which is the wrong one where the padding is the end token.

    Args:
        model: with a head named ``score``, with or without adapter.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Float[Tensor, "row token"]:
        """The head's number at every token, in float32 (float64 for float64 models).

        Args:
            inputs: what the body takes.
        """
        model: Any = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        hidden = model.base_model(**inputs, use_cache=False)[0]
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = model.score(hidden.to(next(model.score.parameters()).dtype)).squeeze(-1)
        return values.to(torch.promote_types(values.dtype, torch.float32))


Head = Literal["saved", "fresh", "zero"]
"""Where the head's weights come from: the saved ones, drawn anew, or 0."""
HEAD = "score.weight"


def load_score_model(name: str, loading: Loading, head: Head = "saved") -> ScoreModel:
    """A score model without dropout, in evaluation mode.

    Args:
        name: local folder, hub name, or ``testbed:policy``; a language model, or one that has a head already.
        loading: how to read it.
        head: ``saved`` refuses a folder without a head; ``fresh`` draws one from N(0, 1 / (d + 1)), and ``zero`` sets
            it to 0, unless a head is saved.

    Raises:
        FileNotFoundError: nothing there; see ``locate``.
        ValueError: the weights are damaged or incomplete, or the architecture has no linear head without bias.
    """
    place = locate(name)
    config = AutoConfig.from_pretrained(place, revision=loading.revision, trust_remote_code=False)
    switch_dropout_off(config)
    config.num_labels = 1
    config.problem_type = None
    model, missing = _read(place, config, loading)
    layer = getattr(model, "score", None)
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        raise ValueError(f"{place}: {type(model).__name__} has no linear score head without bias on a causal body")
    if weights_wanted() and (HEAD in missing or loading.weights == "random"):
        if head == "saved":
            raise ValueError(f"{place} is no reward model: it has no score head ({HEAD}); train one with task: reward")
        _fill(layer, head, loading.seed)
    if missing - {HEAD}:
        raise ValueError(f"{place}: the weights do not fill the model: {sorted(missing - {HEAD})}")
    if loading.kernels == "liger":
        use_liger(model)
    if loading.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return ScoreModel(model.eval())


def adapted(model: ScoreModel, lora: LoRA) -> ScoreModel:
    """The same score model with a fresh adapter, beside which its head is trained as a whole.

    Args:
        model: as it is read.
        lora: the adapter.
    """
    whole: Any = model.model
    return ScoreModel(lora.wrap(whole, head="score"))


def save_score_model(
    model: ScoreModel,
    folder: Path,
    pad: int,
    weights: dict[str, Any] | None = None,
    form: Literal["merged", "adapter"] = "merged",
) -> None:
    """Write a folder that ``AutoModelForSequenceClassification`` reads.

    Args:
        model: what to write.
        folder: where to.
        pad: id that the library's own pooling is to take for padding.
        weights: gathered weights by their names in ``model.model``; None takes them as they are.
        form: of a model with an adapter: ``merged`` changes the model's weights, ``adapter`` writes adapter and head.
    """
    written: Any = model.model
    written.config.pad_token_id = pad
    if isinstance(written, PeftModel) and form == "merged":
        written.merge_and_unload().save_pretrained(str(folder))
    else:
        written.save_pretrained(str(folder), state_dict=weights)


def _read(place: str, config: Any, loading: Loading) -> tuple[Any, set[str]]:
    """The model and the names of the weights that were not there."""
    dtype = getattr(torch, loading.dtype)
    if loading.weights == "random" or not weights_wanted():
        build: Any = AutoModelForSequenceClassification.from_config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(loading.seed)
            return build(config, dtype=dtype, attn_implementation=loading.attention), set()
    read: Any = AutoModelForSequenceClassification.from_pretrained
    try:
        with torch.random.fork_rng(devices=[]), _told_by_us():
            model, report = read(
                place,
                config=config,
                revision=loading.revision,
                dtype=dtype,
                attn_implementation=loading.attention,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # and reported below, where they are an error
            )
    except SafetensorError as error:
        raise ValueError(f"{place}: the weights are damaged or cut short: {error}") from error
    if report["mismatched_keys"]:
        raise ValueError(f"{place}: weights of other shapes: {sorted(map(str, report['mismatched_keys']))}")
    return model, set(report["missing_keys"])


@contextmanager
def _told_by_us() -> Iterator[None]:
    """Without the library's report of weights that are missing: the head is, and what else is, is an error here."""
    logs: Any = transformers.utils.logging
    before = logs.get_verbosity()
    logs.set_verbosity_error()
    try:
        yield
    finally:
        logs.set_verbosity(before)


@torch.no_grad()
def _fill(layer: nn.Linear, head: Head, seed: int) -> None:
    if head == "zero":
        layer.weight.zero_()
        return
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.in_features + 1)
    layer.weight.copy_(noise)


@dataclass(frozen=True)
class Value:
    """The value model of actor-critic training: a body of its own, with a head that starts at 0.

    Args:
        path: local folder or hub name of a language model or a reward model; None takes the policy's.
        loading: how to read it.
        learning_rate: of its weights; None for the optimizer's own.
    """

    path: str | None = None
    loading: Loading = field(default_factory=Loading)
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"Value: learning_rate is {self.learning_rate}; expected a number above 0")

    def load(self, policy: str, loading: Loading) -> ScoreModel:
        """The model, in training mode.

        Args:
            policy: name of the policy, which it starts from unless it has a path of its own.
            loading: how the policy is read; where it starts from the policy, of the same revision.
        """
        revision = self.loading.revision or (loading.revision if self.path is None else None)
        return load_score_model(self.path or policy, replace(self.loading, revision=revision), head="zero").train()
