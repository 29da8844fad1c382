"""How a model is read for a while: in evaluation mode, and with weights in the dtype of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every layer of it back into the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def narrow_weights(model: nn.Module, dtype: torch.dtype, keep: nn.Module | None = None) -> None:
    """Cast the weights of a frozen model that autocast would cast at every use, in place.

    These are the float32 weights of linear layers. Norms, embeddings, and heads that share an embedding's weight stay
    wide, as autocast leaves them: no result changes by a bit.

    Args:
        model: is never trained.
        dtype: of autocast.
        keep: a model whose weights are left alone where both share them; None for none.
    """
    kept = set() if keep is None else {id(weight) for weight in keep.parameters()}
    for weight in _cast_by_autocast(model):
        if id(weight) not in kept:
            weight.data = weight.data.to(dtype)


@contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """Read the weights of linear layers from one copy in the autocast dtype, made now; without autocast do nothing.

    A response of many tokens would cast all of them for each token. No result changes by a bit. The copies take half
    the memory of these weights until the end of the context; nothing may train inside it.

    Args:
        model: any model; sharded weights are left alone.
    """
    kind = next(model.parameters()).device.type
    weights = _cast_by_autocast(model) if torch.is_autocast_enabled(kind) else []
    wide = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.to(torch.get_autocast_dtype(kind))
        yield
    finally:
        for weight, data in zip(weights, wide, strict=True):
            weight.data = data


def _cast_by_autocast(model: nn.Module) -> list[nn.Parameter]:
    """Return the float32 weights of plain linear layers that no embedding shares."""
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    weights = {
        id(weight): weight
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward
        for weight in layer.parameters(recurse=False)
    }
    return [
        weight
        for number, weight in weights.items()
        if weight.dtype == torch.float32 and number not in embeddings and not isinstance(weight, DTensor)
    ]
