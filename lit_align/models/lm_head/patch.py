"""The output head of a causal language model: found, described, and replaced for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from lit_align.models.lm_head.projection import Extras, Hidden, LogitRule, Targets, TokenValues, Workspace
from lit_align.models.score_model import ScoreModel

Compute = Callable[[Float[Tensor, "row column hidden"]], dict[str, Tensor]]
"""What is made of the last hidden states instead of logits."""
GRADED = "graded"
"""The name of what carries the gradient."""


def base_of(model: nn.Module) -> Any:
    """The model of transformers inside an adapter or behind a score head, or the model itself."""
    inner = model.model if isinstance(model, ScoreModel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that gives logits; None if the model does not say which it is."""
    ask = getattr(base_of(model), "get_output_embeddings", None)
    head = ask() if ask is not None else None
    return head if isinstance(head, nn.Module) else None


def is_linear(head: nn.Module) -> bool:
    """Whether a head is nothing but Wh + b: no adapter on it, no quantised weights, no forward of its own.

    >>> is_linear(nn.Linear(2, 3)), is_linear(nn.Sequential(nn.Linear(2, 3)))
    (True, False)
    """
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    return "forward" not in vars(head) and head.weight.is_floating_point()


def logit_rule(model: nn.Module) -> LogitRule:
    """What the model's configuration says it does to the head's outputs."""
    config = base_of(model).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    return LogitRule(
        scale=float(scale) / float(getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )


@contextmanager
def replaced_head(model: nn.Module, head: nn.Module, compute: Compute) -> Iterator[None]:
    """Calls of ``model`` give what ``compute`` makes of the last hidden states; no logits are formed.

    The model is called as ever, so whatever hangs on its forward pass (sharding, adapters) works as ever: the values
    leave through it, before any hook of others sees them.

    Args:
        model: the model.
        head: its output head.
        compute: gives values by name; the one named ``graded`` carries the gradient, and comes back as ``[1, n, 1]``.
    """
    found: list[dict[str, Tensor]] = []

    def forward(hidden: Tensor) -> Tensor:
        found.append(compute(hidden))
        # what carries the gradient leaves through the head too, whose own hooks then know of its backward pass;
        # what the model does to its logits is done to a copy, and dropped
        found[-1][GRADED] = found[-1][GRADED].reshape(1, -1, 1).clone()
        return found[-1][GRADED]

    def leave(module: nn.Module, given: Any, output: Any) -> dict[str, Tensor]:
        return found.pop()

    own = vars(head).get("forward")
    handle = model.register_forward_hook(leave, prepend=True)
    object.__setattr__(head, "forward", forward)
    try:
        yield
    finally:
        handle.remove()
        if own is None:
            object.__delattr__(head, "forward")
        else:
            object.__setattr__(head, "forward", own)


def values_through(
    forward: Callable[[Tensor], Tensor], rule: LogitRule, workspace: Workspace, asked: tuple[Hidden, Targets, Extras]
) -> TokenValues:
    """Log-probabilities through a head of any kind, a tile at a time, by autograd; tiles are formed again backward.

    Args:
        forward: the head.
        rule: from its outputs to logits.
        workspace: says how large a tile is.
        asked: hidden states, the scored ids, and what else is wanted.
    """
    hidden, targets, extras = asked

    def tile(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = rule(forward(rows))
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        certain, none = logs.detach(), logs.new_zeros(len(ids))
        return (
            logs.gather(1, ids.unsqueeze(1)).squeeze(1),
            (2 * certain).logsumexp(-1) if extras.collision else none,
            -(certain.exp() * certain).sum(-1) if extras.entropy else none,
        )

    with torch.no_grad():
        vocabulary = forward(hidden[:1]).shape[-1]
    rows = workspace.rows(vocabulary, hidden.dtype)
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    found = [checkpoint(tile, *part, use_reentrant=False) for part in parts]
    log_probs, collision, entropy = (torch.cat(column) for column in zip(*found, strict=True))
    return TokenValues(log_probs, collision if extras.collision else None, entropy if extras.entropy else None)


FULL = 4
"""Bytes of a number in full precision."""


@contextmanager
def rows_added(model: nn.Module) -> Iterator[None]:
    """Let what is read meanwhile add its rows to the embedding's gradient, not form a second one of its size.

    The sum is the same. It is for portions of a step: their backward passes come before the gradients are reset.
    Nothing is changed where there is no gradient yet, on other devices than a CPU, where weights are sharded, and in
    16 bits, where adding row by row would round more often.

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
    return not embedding.sparse and not embedding.scale_grad_by_freq and gradient.itemsize >= FULL
