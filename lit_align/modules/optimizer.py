"""The optimizer of a run: which weights decay, how its step is computed, and which optimizers can take one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.optim import LBFGS, Adam, Optimizer

from lit_align.compat.torch import leave_unscaling

UNDECAYED_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|[._])norm(?:$|[._])|_norm(?:$|\.)")
"""Names of norms and biases, as transformers' ``Trainer`` has them."""


def build_optimizer(
    build: Callable[[Any], Optimizer], groups: Sequence[Any], module: nn.Module, decay_norms_and_biases: bool
) -> Optimizer:
    """Build an optimizer; with weight decay, norms and biases are in a group of their own that does not decay.

    Adam and AdamW compute the step in one pass over the weights (``fused``) unless ``fused`` or ``foreach`` is set,
    which takes a third of the time on a CPU.

    Args:
        build: from parameters or groups of parameters to the optimizer.
        groups: parameters, or groups of them.
        module: whose parameters they are.
        decay_norms_and_biases: let them decay as well.
    """
    optimizer = build(list(groups))
    if decay_norms_and_biases or not optimizer.defaults.get("weight_decay"):
        return _fuse(optimizer)
    as_groups = groups if isinstance(groups[0], dict) else [{"params": list(groups)}]
    undecayed = undecayed_parameters(module)
    parts = []
    for group in as_groups:
        parts.append({**group, "params": [weight for weight in group["params"] if id(weight) not in undecayed]})
        rest = [weight for weight in group["params"] if id(weight) in undecayed]
        parts.append({**group, "params": rest, "weight_decay": 0.0})
    return _fuse(build([part for part in parts if part["params"]]))


def _fuse(optimizer: Optimizer) -> Optimizer:
    """Set ``fused`` in all groups of Adam and AdamW, whose fused kernels also take sharded weights.

    However the optimizer came to be fused, its gradients can be clipped.
    """
    leave_unscaling(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    fits = all(weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for weight in weights)
    chosen = any(optimizer.defaults.get(name) is not None for name in ("fused", "foreach"))
    if isinstance(optimizer, Adam) and fits and not chosen and not optimizer.defaults["differentiable"]:
        for settings in (optimizer.defaults, *optimizer.param_groups):
            settings["fused"] = True
    return optimizer


def undecayed_parameters(module: nn.Module) -> set[int]:
    """Return the ``id`` of every parameter that is a bias or belongs to a norm.

    >>> layer = nn.ModuleDict({"proj": nn.Linear(2, 2), "ln": nn.LayerNorm(2)})
    >>> [name for name, weight in layer.named_parameters() if id(weight) in undecayed_parameters(layer)]
    ['proj.bias', 'ln.weight', 'ln.bias']
    """
    norms = {
        id(weight)
        for layer in module.modules()
        if re.search(r"norm(?:\d+d)?$", type(layer).__name__.lower())
        for weight in layer.parameters(recurse=False)
    }
    named = {id(weight) for name, weight in module.named_parameters() if UNDECAYED_NAMES.search(name.lower())}
    return norms | named


def describe_groups(optimizer: Optimizer) -> str:
    """Describe an optimizer and its groups of parameters in one line.

    >>> layer = nn.Linear(2, 3)
    >>> from torch.optim import SGD
    >>> describe_groups(
    ...     build_optimizer(lambda p: SGD(p, lr=0.5, weight_decay=0.1), [*layer.parameters()], layer, False)
    ... )
    'SGD: 6 parameters (lr 0.5, weight decay 0.1), 3 parameters (lr 0.5, weight decay 0)'
    """
    parts = []
    for group in optimizer.param_groups:
        numbers = {"lr": group.get("initial_lr", group.get("lr")), "weight decay": group.get("weight_decay")}
        shown = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if isinstance(value, int | float))
        count = sum(weight.numel() for weight in group["params"])
        parts.append(f"{count:,} parameters" + (f" ({shown})" if shown else ""))
    return f"{type(optimizer).__name__}: {', '.join(parts)}"


def check_kind(optimizer: Optimizer) -> None:
    """Raise for an optimizer that evaluates the loss several times per step.

    Raises:
        ValueError: it is one.
    """
    if isinstance(optimizer, LBFGS):
        raise ValueError(_several_times(optimizer))


class SingleEvaluation:
    """A closure of an optimizer step that can be called once: metrics, totals and rows count each call.

    Args:
        closure: computes loss and gradient.
        optimizer: whose step it is.
    """

    def __init__(self, closure: Callable[[], Any], optimizer: Any) -> None:
        self._closure = closure
        self._optimizer = optimizer
        self._calls = 0

    def __call__(self) -> Any:
        """Compute loss and gradient.

        Raises:
            ValueError: the optimizer has called it before.
        """
        self._calls += 1
        if self._calls > 1:
            raise ValueError(_several_times(self._optimizer))
        return self._closure()

    def check(self) -> None:
        """Raise if the optimizer's step has ended without a call.

        Raises:
            ValueError: it has.
        """
        if not self._calls:
            raise ValueError(
                f"model.optimizer {_name(self._optimizer)} takes a step without calling the closure that computes the "
                "loss, so nothing is trained; expected an optimizer whose step calls its closure once"
            )


def _several_times(optimizer: Any) -> str:
    return (
        f"model.optimizer {_name(optimizer)} evaluates the loss several times per step, which metrics, totals and the "
        "position in the data would count as several steps; expected an optimizer that evaluates it once"
    )


def _name(optimizer: Any) -> str:
    return type(getattr(optimizer, "optimizer", optimizer)).__name__
