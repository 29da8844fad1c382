"""Kept weights are those of a module that go into a checkpoint: where there is an adapter, what trains alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_align.models import LoRA


def kept(module: nn.Module, lora: LoRA | None, state: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a state dict that a checkpoint keeps.

    Args:
        module: whose state it is.
        lora: its adapter; None keeps all.
        state: name to weight.
    """
    return dict(state) if lora is None else {name: state[name] for name in trained(module)}


def check_kept(module: nn.Module, lora: LoRA | None, state: Mapping[str, Any]) -> None:
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
