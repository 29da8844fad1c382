"""The memory of an optimizer: what it keeps for its weights, and what its arithmetic takes for a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lit_align.plan.rehearsal import Watch, shapes_alone


@dataclass(frozen=True)
class Kept:
    """Bytes of an optimizer.

    Args:
        states: kept from step to step.
        working: alive beside weights, gradients and states for a moment of the step.
    """

    states: int
    working: int


def rehearse_optimizer(optimizer: OptimizerCallable, weights: Sequence[Tensor], device: str) -> Kept:
    """Take two steps on tensors of the same shapes without values; the first one makes the states.

    On a GPU an optimizer of PyTorch takes all its steps at once unless it is told otherwise, on a CPU one after the
    other; that is what its arithmetic takes memory by.

    Args:
        optimizer: makes one from a list of weights.
        weights: what is trained; their values are not looked at.
        device: ``cuda`` or ``cpu``.

    >>> from torch.optim import AdamW
    >>> weights = [torch.zeros(64, 64), torch.zeros(128, 64)]
    >>> [rehearse_optimizer(AdamW, weights, device).working // (4 * 64) for device in ("cpu", "cuda")]
    [320, 192]
    """
    mode = shapes_alone()
    with mode:
        trained = [nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)) for weight in weights]
        gradients = [torch.empty_like(weight) for weight in trained]
    for weight, gradient in zip(trained, gradients, strict=True):
        weight.grad = gradient
    trial: Any = optimizer(trained)
    for group in trial.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = device == "cuda"
    watch = Watch(mode)
    watch.forget([*trained, *gradients])
    with watch:
        trial.step()
        before = watch.live
        watch.start_over()
        trial.step()
    states = {id(leaf): leaf.nbytes for leaf in tree_leaves(list(trial.state.values())) if _large(leaf)}
    return Kept(sum(states.values()), watch.peak - before)


def _large(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.numel() > 1
