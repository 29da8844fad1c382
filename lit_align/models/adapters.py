"""LoRA adapters: new ones, those in a folder, which are trained further, and merging them into the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from lit_align.compat.peft import BaseTunerLayer, PeftModel
from lit_align.errors import check_range
from lit_align.files import at_home
from lit_align.locate import adapter_base, refuse_second_adapter
from lit_align.models.quantization import merge_quantized
from lit_align.models.sharding import all_finite, weights_wanted

WEIGHTS = "adapter_model.safetensors"
SAVED = "lit_align_saved_adapter"
"""Attribute of a model whose adapter had been trained before it was loaded: without it the model is another one."""
_REASON = 400
"""Most characters of a reason: PEFT names every layer."""
_PREFIX = "base_model.model."
"""What stands before the names of a base model's layers in the files of PEFT."""


@dataclass(frozen=True)
class LoRA:
    r"""Trains low-rank updates $W + \frac{\alpha}{r} B A$ and freezes the weights themselves; Hu et al., 2106.09685.

    With an adapter the reference needs no memory: it is the policy with the adapter switched off.

    Args:
        rank: rank r of each update.
        alpha: its scale α.
        dropout: dropout on the adapter's input; leave at 0 unless the adapter overfits.
        targets: names of the layers to adapt; ``all-linear`` takes every linear layer except the output head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        check_range("LoRA: rank", self.rank, 1)
        check_range("LoRA: alpha", self.alpha, 1)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA: dropout is {self.dropout}; expected 0 <= dropout < 1")

    def wrap(self, model: PreTrainedModel, head: str | None = None) -> PeftModel:
        """Wrap a model with a new adapter, which leaves its outputs unchanged until it is trained.

        Args:
            model: a causal language model, or one with a head for scores.
            head: name of a layer that is fully trained in addition to the adapter; None for none.
        """
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM" if head is None else "SEQ_CLS",
            modules_to_save=None if head is None else [head],
        )
        return get_peft_model(model, config)


@dataclass(frozen=True)
class SavedAdapter:
    """A LoRA adapter in a folder of PEFT, which is trained further in place of a new one.

    Rank, targets and scale are those of its ``adapter_config.json``. Its dropout is switched off, as a model's.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
    """

    folder: str

    def wrap(self, model: PreTrainedModel, head: str | None = None, trains: bool = True) -> PeftModel:
        """Put the adapter on its base model.

        Args:
            model: the base model, a causal language model or one with a head for scores.
            head: name of the head for scores, which is trained or frozen as the adapter is; None for none. Adapters
                of language models are then accepted too, what they change of the output head left out.
            trains: whether the adapter is trained.

        Raises:
            FileNotFoundError: its weights are missing.
            ValueError: it is not a LoRA adapter of such a model, or does not fit the base model.
        """
        from peft import get_peft_model

        config = self._read_config(head)
        config.inference_mode = not trains
        try:
            wrapped: PeftModel = get_peft_model(model, config)
            if weights_wanted():
                self._load(wrapped, head)
        except (RuntimeError, ValueError, KeyError) as error:  # how PEFT says that layers or shapes differ
            base, reason = adapter_base(self.folder), " ".join(str(error).split())[:_REASON]
            raise ValueError(f"the adapter {self.folder} does not fit its base model {base}: {reason}") from error
        for layer in wrapped.modules():
            if isinstance(layer, _DropoutNd):
                layer.p = 0.0
        setattr(wrapped, SAVED, True)
        return wrapped

    def holds(self, layer: str) -> bool:
        """Return whether a layer is saved whole beside the adapter.

        Args:
            layer: name of the layer in the base model.
        """
        file = Path(self.folder, WEIGHTS)
        if not file.is_file():
            raise FileNotFoundError(f"{WEIGHTS} is missing in {self.folder}, which holds an adapter_config.json")
        with safe_open(str(file), "pt") as weights:
            return f"{_PREFIX}{layer}.weight" in set(weights.keys())

    def _read_config(self, head: str | None) -> Any:
        from peft import PeftConfig

        config: Any = PeftConfig.from_pretrained(self.folder)
        kind, task = str(config.peft_type).rpartition(".")[-1], config.task_type
        if kind != "LORA" or task not in (None, "CAUSAL_LM", *(() if head is None else ("SEQ_CLS",))):
            expected = "a language model (CAUSAL_LM)" if head is None else "a language or reward model"
            raise ValueError(
                f"{self.folder} holds an adapter of the type {kind}, made for {task}; expected a LoRA adapter of "
                f"{expected}. One of another type can be merged into its base model first"
            )
        if not Path(self.folder, WEIGHTS).is_file():
            raise FileNotFoundError(f"{WEIGHTS} is missing in {self.folder}, which holds an adapter_config.json")
        if head is not None:
            config.task_type, config.modules_to_save = "SEQ_CLS", sorted({*(config.modules_to_save or ()), head})
        return config

    def _load(self, model: PeftModel, head: str | None) -> None:
        from peft import load_peft_weights, set_peft_model_state_dict

        weights, body = load_peft_weights(self.folder, device="cpu"), ""
        if head is not None:
            base: Any = model.get_base_model()
            body = base.base_model_prefix
            weights.setdefault(f"{_PREFIX}{head}.weight", getattr(base, head).weight)  # a new one, as it is
        report: Any = set_peft_model_state_dict(model, weights)
        missing = [name for name in report.missing_keys if "lora_" in name]
        unknown = [name for name in report.unexpected_keys if name.startswith(f"{_PREFIX}{body}")]
        wrong = {"missing": missing, "unknown": unknown}
        named = [f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in wrong.items() if names]
        if named:
            raise ValueError(f"weights of adapter_config.json's layers are {'; '.join(named)}")
        for name, weight in model.named_parameters():
            if ".default" in name and not all_finite(weight):
                raise ValueError(f"weight {name} has values that are not finite")


def saved_adapter(name: str) -> SavedAdapter | None:
    """Return the adapter in a folder; None where the name is that of a whole model.

    Raises:
        ValueError: ``adapter_config.json`` cannot be read, or names no base model.
    """
    return None if adapter_base(name) is None else SavedAdapter(str(at_home(name)))


def adapter_of(policy: str, lora: LoRA | None) -> LoRA | SavedAdapter | None:
    """Return the adapter that a run trains: the one in the policy's folder, a new one, or None.

    Raises:
        ValueError: the folder holds an adapter, and a new one is to be trained.
    """
    refuse_second_adapter(policy, lora)
    return saved_adapter(policy) or lora


def has_saved_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter that had been trained before it was loaded."""
    return bool(getattr(model, SAVED, False))


def merge(model: PeftModel) -> PreTrainedModel:
    """Add an adapter to the weights it adapts, and return the model without it.

    A weight that another layer shares, as embedding and output head do where they are tied, is copied first: the
    change belongs to one of the two. The merged model is then no longer tied.

    Quantized weights become whole ones, in the dtype of the others.

    Args:
        model: with an adapter; its weights are changed.
    """
    merge_quantized(model)
    base: Any = model.get_base_model()
    for layer in [module for module in base.modules() if isinstance(module, BaseTunerLayer)]:
        adapted: Any = layer.get_base_layer()
        if _is_shared(adapted, base):
            adapted.weight = nn.Parameter(adapted.weight.detach().clone(), requires_grad=False)
            for config in (base.config, base.config.get_text_config()):
                config.tie_word_embeddings = False
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


def _is_shared(layer: nn.Module, model: nn.Module) -> bool:
    """Return whether another layer of the model has the same weight."""
    weight = layer._parameters.get("weight")
    others = (other for other in model.modules() if other is not layer)
    return weight is not None and any(part is weight for other in others for part in other._parameters.values())
