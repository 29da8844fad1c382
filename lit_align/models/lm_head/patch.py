"""The output head of a causal language model: locate it, describe it, replace it during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lit_align.compat.peft import PeftModel
from lit_align.models.lm_head.projection import Hidden, LogitRule, Targets, TokenValues, Workspace
from lit_align.models.score_model import ScoreModel

GRADED = "graded"
"""Key of the tensor that carries the gradient in the output of a model whose head is replaced."""


def base_of(model: nn.Module) -> Any:
    """Return the transformers model inside an adapter or a score model, or the model itself."""
    inner = model.model if isinstance(model, ScoreModel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the layer that computes logits, or None if the model does not say which it is."""
    ask = getattr(base_of(model), "get_output_embeddings", None)
    head = ask() if ask is not None else None
    return head if isinstance(head, nn.Module) else None


def is_linear(head: nn.Module) -> bool:
    """Whether a head computes Wh + b: no adapter on it, no quantised weights, no patched forward.

    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.Sequential(nn.Linear(2, 3)))
    (True, False)
    """
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    return "forward" not in vars(head) and head.weight.is_floating_point()


def logit_rule(model: nn.Module) -> LogitRule:
    """Return what the model does to the outputs of its head, according to its configuration."""
    config = base_of(model).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    return LogitRule(
        scale=float(scale) / float(getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )


@contextmanager
def replaced_head(model: nn.Module, head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the output head's forward pass, so that no logits are formed.

    The model is called as usual, so sharding, adapters and hooks keep working: the tensor that carries the gradient
    leaves through the head and through the model, before other hooks see it. The model returns
    ``{"graded": [1, n, 1]}``.

    Args:
        model: the model.
        head: its output head.
        forward: maps the last hidden states to a tensor of n elements that carries the gradient.
    """
    graded: list[Tensor] = []

    def leave_head(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        graded.append(output.reshape(1, -1, 1).clone())  # what the model does to its logits is discarded
        return graded[-1]

    def leave_model(module: nn.Module, inputs: Any, output: Any) -> dict[str, Tensor]:
        return {GRADED: graded.pop()}

    original = vars(head).get("forward")
    handles = [
        hooked.register_forward_hook(hook, prepend=True) for hooked, hook in ((head, leave_head), (model, leave_model))
    ]
    object.__setattr__(head, "forward", forward)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if original is None:
            object.__delattr__(head, "forward")
        else:
            object.__setattr__(head, "forward", original)


def values_through(
    forward: Callable[[Tensor], Tensor],
    rule: LogitRule,
    workspace: Workspace,
    inputs: tuple[Hidden, Targets],
    collision: bool,
) -> TokenValues:
    """Compute log-probabilities through a head of any kind by autograd, checkpointing each tile.

    Args:
        forward: the head.
        rule: from its outputs to logits.
        workspace: gives the size of a tile.
        inputs: hidden states and ids of the scored tokens.
        collision: also compute the collision log-probabilities.
    """
    hidden, targets = inputs

    def tile(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = rule(forward(rows))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits.logsumexp(-1)  # log_softmax is biased by up to 3e-5 for peaked logits of a large vocabulary
        collisions = (2 * logits.detach()).logsumexp(-1) - 2 * total.detach() if collision else torch.zeros_like(total)
        return logits.gather(1, ids.unsqueeze(1)).squeeze(1) - total, collisions

    with torch.no_grad():
        vocabulary = forward(hidden[:1]).shape[-1]
    rows = workspace.rows(vocabulary, hidden.dtype)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    tiles = [checkpoint(tile, *part, use_reentrant=False) for part in parts]
    log_probs, collisions = (torch.cat(column) for column in zip(*tiles, strict=True))
    return TokenValues(log_probs, collisions if collision else None)


_FLOAT32_BYTES = 4


@contextmanager
def sparse_embedding_grad(model: nn.Module) -> Iterator[None]:
    """Add rows to an existing embedding gradient instead of allocating a second one of the embedding's size.

    The sum is the same. Used for the chunks of an optimizer step. Does nothing before the first gradient, on devices
    other than CPUs, for sharded weights, and in 16 bits, where adding row by row would round more often.

    Args:
        model: a model of transformers, with or without an adapter or a score head.
    """
    embedding = base_of(model).get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or not _has_rows(embedding):
        yield
        return
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False


def _has_rows(embedding: nn.Embedding) -> bool:
    gradient = embedding.weight.grad
    if gradient is None or isinstance(gradient, DTensor) or gradient.is_sparse or gradient.device.type != "cpu":
        return False
    return not embedding.sparse and not embedding.scale_grad_by_freq and gradient.itemsize >= _FLOAT32_BYTES
