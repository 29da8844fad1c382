"""Adapters that were trained before: what their folders hold, and loading them to train them further."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from lit_align.files import adapter_base, adapter_problem, at_home
from lit_align.models.sharding import weights_wanted

WEIGHTS = "adapter_model.safetensors"
SAVED = "lit_align_saved_adapter"
"""Attribute of a model whose adapter had been trained before it was loaded: without it the model is another one."""
_REASON = 400
"""Most characters of a reason: PEFT names every layer."""


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
            model: the base model.
            head: of a score model, for which language models' adapters are not made; None for none.
            trains: whether the adapter is trained.

        Raises:
            FileNotFoundError: its weights are missing.
            ValueError: it is not a LoRA adapter of a language model, or does not fit the base model.
        """
        if head is not None:
            raise ValueError(adapter_problem(self.folder))
        config = self._read_config()
        config.inference_mode = not trains
        try:
            wrapped: PeftModel = get_peft_model(model, config)
            if weights_wanted():
                self._load(wrapped, trains)
        except (RuntimeError, ValueError) as error:  # how PEFT says that layers or shapes differ
            base, reason = adapter_base(self.folder), " ".join(str(error).split())[:_REASON]
            raise ValueError(f"the adapter {self.folder} does not fit its base model {base}: {reason}") from error
        for layer in wrapped.modules():
            if isinstance(layer, _DropoutNd):
                layer.p = 0.0
        setattr(wrapped, SAVED, True)
        return wrapped

    def _read_config(self) -> Any:
        config = PeftConfig.from_pretrained(self.folder)
        kind, task = str(config.peft_type).rpartition(".")[-1], config.task_type
        if kind != "LORA" or task not in (None, "CAUSAL_LM"):
            raise ValueError(
                f"{self.folder} holds an adapter of the type {kind}, made for {task}; expected a LoRA adapter of a "
                "language model (CAUSAL_LM). Merge it into its base model first"
            )
        if not Path(self.folder, WEIGHTS).is_file():
            raise FileNotFoundError(f"{WEIGHTS} is missing in {self.folder}, which holds an adapter_config.json")
        return config

    def _load(self, model: PeftModel, trains: bool) -> None:
        report: Any = model.load_adapter(self.folder, "default", is_trainable=trains)
        wrong = {"missing": report.missing_keys, "unknown": report.unexpected_keys}
        named = [f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in wrong.items() if names]
        if named:
            raise ValueError(f"weights of adapter_config.json's layers are {'; '.join(named)}")
        for name, weight in model.named_parameters():
            if ".default" in name and not bool(weight.isfinite().all()):
                raise ValueError(f"weight {name} has values that are not finite")


def saved_adapter(name: str) -> SavedAdapter | None:
    """Return the adapter in a folder; None where the name is that of a whole model.

    Args:
        name: folder or hub name.

    Raises:
        ValueError: ``adapter_config.json`` cannot be read, or names no base model.
    """
    return None if adapter_base(name) is None else SavedAdapter(str(at_home(name)))


def has_saved_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter that had been trained before it was loaded.

    Args:
        model: with or without an adapter.
    """
    return bool(getattr(model, SAVED, False))
