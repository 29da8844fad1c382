"""Building of a module's models, whole or sharded as the trainer's strategy requires, and their state dicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from lit_align.compat.peft import PeftModel
from lit_align.models import LoRA, Precomputed, Reference, SavedAdapter, SecondModel, load_causal_lm
from lit_align.models.lm_head.patch import base_of
from lit_align.models.sharding import Built, fill, is_sharded, shard, without_weights
from lit_align.models.start_checks import without_gradient


class Builder:
    """Builds models whole, or sharded: then only rank zero reads the weights, and sends every process its shards.

    Args:
        module: its trainer's strategy decides; without a trainer models are whole.
    """

    def __init__(self, module: LightningModule) -> None:
        self._module = module
        self.mesh = module.device_mesh

    def __call__(self, source: Callable[[], Built]) -> Built:
        """Build one model."""
        if self.mesh is None:
            return source()
        with without_weights():
            model = source()
        self.shard(model)
        self.fill([model], source)
        return model

    def shard(self, model: nn.Module) -> None:
        """Shard a model without weights in place."""
        assert self.mesh is not None
        shard(model, self.mesh["data_parallel"], self._module.trainer.precision == "bf16-mixed")

    def fill(self, models: list[nn.Module], source: Callable[[], nn.Module]) -> None:
        """Load the same weights into sharded models of the same parameters.

        Args:
            models: without weights.
            source: loads them; called on rank zero only.
        """
        fill(models, source, self._module.trainer.strategy.root_device)


def build_models(
    module: LightningModule, policy: Callable[[], PreTrainedModel | PeftModel], reference: Reference | None
) -> PreTrainedModel | PeftModel:
    """Build the policy and attach the reference.

    Args:
        module: its trainer's strategy decides whether models are sharded.
        policy: loads the policy from its files.
        reference: to attach; None for none.
    """
    build = Builder(module)
    if build.mesh is None:
        model = policy()
        if reference is not None:
            reference.attach(model)
        return model
    with without_weights():
        model = policy()
        if reference is not None:
            reference.attach(model)
    build.shard(model)
    copies: list[nn.Module] = [model]
    if reference is not None:
        copies += _shard_reference(build, reference, model)
    build.fill(copies, _identifying(reference, policy))
    if isinstance(reference, Precomputed):
        identity = [reference.identity]
        torch.distributed.broadcast_object_list(identity, src=0)
        reference.identity = identity[0]
    return model


def freeze_unused(module: LightningModule, model: nn.Module) -> None:
    """Freeze the weights of a trained model that no text reaches, and name them; warn of those that few texts reach.

    They would get no gradient, at which DDP stops in the second step. The models of a dry run, which hold no numbers,
    are left as they are.
    """
    if any(weight.is_meta for weight in model.parameters()):
        return
    trainer = module._trainer
    if trainer is not None and not is_sharded(model):
        model.to(trainer.strategy.root_device)  # some kernels run there alone
    never, not_here = without_gradient(model)
    for name in never:
        model.get_parameter(name).requires_grad_(False)
    kind = base_of(model).config.model_type
    if never:
        parts = ", ".join(sorted({".".join(name.split(".")[:3]) for name in never})[:_PARTS])
        rank_zero_warn(f"{kind}: {len(never)} weights that texts do not reach are not trained: {parts}")
    if not_here and trainer is not None and trainer.world_size > 1:
        rank_zero_warn(
            f"{kind}: {len(not_here)} weights get no gradient from some texts, such as {not_here[0]}; if a process "
            "meets such a batch, ddp stops at its next step: take trainer.strategy ddp_find_unused_parameters_true"
        )


_PARTS = 4
"""Most parts that a warning names."""


def frozen_reference(reference: Reference | None, policy: nn.Module) -> list[nn.Module]:
    """Return the model that a reference reads, in a list that is empty where it has none of its own."""
    if reference is None:
        return []
    with reference.active() as model:
        return [] if model is policy else [model]


def _shard_reference(build: Builder, reference: Reference, policy: nn.Module) -> list[nn.Module]:
    """Shard the reference's model, and return it if it is still to be filled with the policy's weights."""
    models = frozen_reference(reference, policy)
    for model in models:
        build.shard(model)
    if not models or not isinstance(reference, SecondModel | Precomputed) or reference.path is None:
        return models
    path, loading = reference.path, reference.loading
    build.fill(models, _identifying(reference, lambda: load_causal_lm(path, loading)))
    return []


def _identifying(reference: Reference | None, source: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Let a precomputed reference identify the model that a source loads, while its weights are whole."""

    def load() -> nn.Module:
        model = source()
        if isinstance(reference, Precomputed) and not reference.identity:
            reference.identify(model)
        return model

    return load


def trainable_state_dict(
    module: nn.Module, lora: LoRA | SavedAdapter | None, state: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the part of a state dict that a checkpoint keeps: that of the adapter, or all."""
    return dict(state) if lora is None else {name: state[name] for name in trainable_names(module)}


def check_state_dict(module: nn.Module, lora: LoRA | SavedAdapter | None, state: Mapping[str, Any]) -> None:
    """Raise if weights are not those of an adapter like the module's.

    Raises:
        ValueError: the names differ.
    """
    if lora is not None and set(state) != trainable_names(module):
        raise ValueError(
            "the checkpoint's weights are not those of this run's adapter (model.lora, or that of model.policy)"
        )


def trainable_names(module: nn.Module) -> set[str]:
    """Return the names of the trainable weights.

    >>> layer = nn.Linear(2, 2)
    >>> trainable_names(layer.requires_grad_(False)), sorted(trainable_names(layer.requires_grad_()))
    (set(), ['bias', 'weight'])
    """
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
