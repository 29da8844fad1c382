"""Builds the models of a module, whole or cut among the processes, as the trainer's strategy wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lit_align.models import LoRA, Precomputed, Reference, SecondModel, load_causal_lm
from lit_align.models.sharding import Built, fill, shard, without_weights


class Builder:
    """Builds models whole, or cut: then rank zero alone reads each, and gives every process its rows.

    Args:
        module: whose trainer says how weights are spread; one without a trainer has them whole.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self.mesh = module.device_mesh

    def __call__(self, source: Callable[[], Built]) -> Built:
        """One model.

        Args:
            source: reads it from its files.
        """
        if self.mesh is None:
            return source()
        with without_weights():
            built = source()
        self.cut(built)
        self.fill([built], source)
        return built

    def cut(self, model: nn.Module) -> None:
        """Cut a model without weights in place."""
        assert self.mesh is not None
        shard(model, self.mesh["data_parallel"], self._module.trainer.precision == "bf16-mixed")

    def fill(self, models: list[nn.Module], source: Callable[[], nn.Module]) -> None:
        """Give cut models of the same parameters their weights.

        Args:
            models: without weights.
            source: reads them; called on rank zero only.
        """
        fill(models, source, self._module.trainer.strategy.root_device)


def build_models(
    module: LightningModule, policy: Callable[[], PreTrainedModel | PeftModel], reference: Reference | None
) -> PreTrainedModel | PeftModel:
    """Build the policy and attach the reference.

    Args:
        module: whose trainer says how the weights are spread.
        policy: builds the policy from its files.
        reference: to attach; None for none.
    """
    build = Builder(module)
    if build.mesh is None:
        built = policy()
        if reference is not None:
            reference.attach(built)
        return built
    with without_weights():
        built = policy()
        if reference is not None:
            reference.attach(built)
    build.cut(built)
    copies: list[nn.Module] = [built]
    if reference is not None:
        copies += _cut_reference(build, reference, built)
    build.fill(copies, _identified(reference, policy))
    if isinstance(reference, Precomputed):
        _agree(reference)
    return built


def frozen_reference(reference: Reference | None, policy: nn.Module) -> list[nn.Module]:
    """Return the model that a reference reads, in a list that is empty where it has none of its own.

    Args:
        reference: attached to the policy; None for none.
        policy: the policy, which an adapter's reference reads.
    """
    if reference is None:
        return []
    with reference.active() as model:
        return [] if model is policy else [model]


def _cut_reference(build: Builder, reference: Reference, policy: nn.Module) -> list[nn.Module]:
    """Cut what the reference reads; what is left to be filled with the policy's weights."""
    with reference.active() as model:
        if model is policy:
            return []
        build.cut(model)
        if not isinstance(reference, SecondModel | Precomputed) or reference.path is None:
            return [model]
        path, loading = reference.path, reference.loading
        build.fill([model], _identified(reference, lambda: load_causal_lm(path, loading)))
        return []


def _identified(reference: Reference | None, source: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same source, which tells a reference that keeps log-probabilities whose they are while weights are whole."""

    def read() -> nn.Module:
        model = source()
        if isinstance(reference, Precomputed) and not reference.identity:
            reference.identify(model)
        return model

    return read


def _agree(reference: Precomputed) -> None:
    """Every process takes over what rank zero has found."""
    told = [reference.identity]
    torch.distributed.broadcast_object_list(told, src=0)
    reference.identity = told[0]


def trainable_state_dict(module: nn.Module, lora: LoRA | None, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dict that a checkpoint keeps.

    Args:
        module: whose state it is.
        lora: its adapter; None keeps all.
        state: name to weight.
    """
    return dict(state) if lora is None else {name: state[name] for name in trained(module)}


def check_state_dict(module: nn.Module, lora: LoRA | None, state: Mapping[str, Any]) -> None:
    """Raise if weights are not those of an adapter like the module's.

    Args:
        module: that is to take them over.
        lora: its adapter; None for any weights.
        state: of a checkpoint.

    Raises:
        ValueError: they are not.
    """
    if lora is not None and set(state) != trained(module):
        raise ValueError("the checkpoint's weights are not those of this run's adapter (model.lora)")


def trained(module: nn.Module) -> set[str]:
    """Names of the weights that train.

    >>> layer = nn.Linear(2, 2)
    >>> trained(layer.requires_grad_(False)), sorted(trained(layer.requires_grad_()))
    (set(), ['bias', 'weight'])
    """
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
