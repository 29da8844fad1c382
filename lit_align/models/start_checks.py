"""Checks of a loaded model, on two short rows, before it is trained or evaluated."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lit_align.compat.peft import BaseTunerLayer
from lit_align.models.lm_head.patch import base_of
from lit_align.models.narrow import evaluating
from lit_align.models.score_model import ScoreModel
from lit_align.models.sharding import is_sharded

PASSES = 8
"""Passes in training mode of a model that draws random numbers; each with another seed."""
AROUND = 4
"""Most tokens of a row in front of its difference from the other one, and behind it: large models read slowly."""


def _rows(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return the first two sequences, which begin alike, as rows of one length: the tokens around their difference."""
    length = min(map(len, sequences[:2]))
    rows = torch.tensor([ids[:length] for ids in sequences[:2]])
    return rows[:, max(0, _shared(rows) - AROUND) : _shared(rows) + AROUND]


def _shared(rows: Tensor) -> int:
    """Return the number of tokens with which both rows begin."""
    return int((rows[0] == rows[1]).long().cumprod(0).sum())


@torch.no_grad()
def check_causal(model: nn.Module, name: str, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Raise if later tokens change what a model gives for earlier ones.

    Returns:
        What the model gives for the rows in evaluation mode.

    Raises:
        ValueError: the model is not causal.
    """
    rows = _rows(sequences)
    with evaluating(model):
        values = _read(model, rows)
    first, second = values[:, : _shared(rows)]
    difference, scale = _largest(first - second), _largest(first)
    if difference > _tolerance(model, 1e-4, 1e-2) * scale:
        raise ValueError(
            f"{name} ({base_of(model).config.model_type}) is not causal: tokens that come later change what it gives "
            f"for earlier ones, by up to {difference:.2g} of {scale:.2g}; the log-probability of a response would "
            "depend on its own future. Expected a model that predicts each token from those before it"
        )
    return values


@torch.no_grad()
def check_training_mode(
    model: nn.Module, name: str, sequences: Sequence[Sequence[int]], expected: Tensor | None = None
) -> None:
    """Raise if a model gives other numbers in training mode than in evaluation mode.

    Dropout is switched off when a model is loaded. What is left are routers with noise, drawn experts, layers that are
    left out. The dropout of an adapter, which is a setting of its own, is not looked at.

    Args:
        model: that is trained.
        name: of the model in messages.
        sequences: token ids, of which the first two begin alike.
        expected: what it gives for them in evaluation mode, as ``check_causal`` returns it; None to compute it here.

    Raises:
        ValueError: it does; a reference, or a sampled response, would have other log-probabilities at the first step.
    """
    rows = _rows(sequences)
    with evaluating(model), _restored_generators(model):
        expected = _read(model, rows) if expected is None else expected
        scale = _largest(expected)
        model.train()
        for layer in [part for part in model.modules() if isinstance(part, BaseTunerLayer)]:
            for adapter in [part for key, part in layer.named_children() if key.endswith("dropout")]:
                adapter.eval()
        first, draws = _seeded(model, rows, 0)
        passes = [first, *(_seeded(model, rows, seed)[0] for seed in range(1, PASSES if draws else 1))]
    noise = max(_largest(values - first) for values in passes)
    apart = _largest(first - expected)
    kind = base_of(model).config.model_type
    if noise > _tolerance(model, 1e-5, 1e-2) * scale:
        raise ValueError(
            f"{name} ({kind}) draws random numbers in training mode beside dropout, which move what it gives by up to "
            f"{noise:.2g} of {scale:.2g}: policy and reference would differ before the first step. Expected a model "
            "without noise, or a setting in its config.json that switches it off"
        )
    if apart > _tolerance(model, 1e-3, 5e-2) * scale:
        raise ValueError(
            f"{name} ({kind}) gives other numbers in training mode than in evaluation mode, by up to {apart:.2g} of "
            f"{scale:.2g}: policy and reference would differ before the first step. Expected a model whose mode makes "
            "no difference once dropout is off"
        )


def without_gradient(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trainable weights that a text does not reach, in two lists.

    The graph of one forward pass is followed, without a backward pass; of a sharded model, whose graph has gathered
    weights in place of its own, a backward pass is taken, in all processes at once. The first list has parts that no
    text reaches, such as the vision tower of a vision-language model. The second has parts that this text does not
    reach while their siblings are reached, such as experts that get no token: another text may.
    """
    with evaluating(model), torch.enable_grad():
        values = _read(model, torch.tensor([[1, 2, 3]]))
        if is_sharded(model):
            values.sum().backward()
            reached = {id(weight) for weight in model.parameters() if weight.grad is not None}
            model.zero_grad()
        else:
            reached = _leaves(values)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    prefixes = {prefix for name, weight in trained.items() if id(weight) in reached for prefix in _prefixes(name)}
    never: list[str] = []
    not_here: list[str] = []
    for name in (name for name, weight in trained.items() if id(weight) not in reached):
        parent = next(prefix for prefix in reversed(_prefixes(name)) if prefix in prefixes or not prefix)
        (not_here if isinstance(model.get_submodule(parent), nn.ModuleList) else never).append(name)
    return never, not_here


def _prefixes(name: str) -> list[str]:
    """Return the names of the modules around a weight, the model's own, which is empty, first."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts))]


def _leaves(values: Tensor) -> set[int]:
    """Return the identities of the tensors whose gradients a backward pass would accumulate."""
    nodes: list[Any] = [values.grad_fn]
    seen, leaves = {None}, set()
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            leaves |= {id(node.variable)} if hasattr(node, "variable") else set()
            nodes += [before for before, _ in node.next_functions]
    return leaves


def _read(model: nn.Module, rows: Tensor) -> Tensor:
    """Return the logits, or scores, of every token of rows without padding, in float32 or wider."""
    ids = rows.to(next(model.parameters()).device)
    options = {} if isinstance(model, ScoreModel) else {"use_cache": False}
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    values: Tensor = output if isinstance(output, Tensor) else output.logits
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _seeded(model: nn.Module, rows: Tensor, seed: int) -> tuple[Tensor, bool]:
    """Read rows after seeding every generator; also return whether any of them was drawn from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    before = _states(model)
    values = _read(model, rows)
    return values, before != _states(model)


def _states(model: nn.Module) -> tuple[bytes, ...]:
    device = next(model.parameters()).device
    parts = [torch.random.get_rng_state()]
    parts += [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    others = (random.getstate(), np.random.get_state(legacy=False))
    return (*(part.numpy().tobytes() for part in parts), *(pickle.dumps(state) for state in others))


@contextmanager
def _restored_generators(model: nn.Module) -> Iterator[None]:
    device, states = next(model.parameters()).device, (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _tolerance(model: nn.Module, single: float, half: float) -> float:
    """Return the tolerance of a model's dtype; sharded ones may be gathered in bfloat16."""
    sharded = any(isinstance(part, FSDPModule) for part in model.modules())
    return half if sharded or next(model.parameters()).dtype == torch.bfloat16 else single


def _largest(values: Tensor) -> float:
    """Return the largest absolute value; 0 where none is finite, which other checks report."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return largest if np.isfinite(largest) else 0.0
