"""Sharding of a model's weights over processes, and building models without their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lit_align.compat.torch import initialize_fsdp_root, parameters_on_meta
from lit_align.models.quantization import is_marked

_READ_WEIGHTS: ContextVar[bool] = ContextVar("whether weights are read", default=True)
_UNSHARDED: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are unsharded", default=())

Built = TypeVar("Built", bound=nn.Module)


def weights_wanted() -> bool:
    """Return whether models are built with their weights: always, except inside ``without_weights``."""
    return _READ_WEIGHTS.get()


def all_finite(weight: Tensor) -> bool:
    """Return whether all values of a weight are finite; of a sharded one, those of this process.

    One pass without a copy, 20 times as fast as ``isfinite``.

    >>> [all_finite(torch.tensor(values)) for values in ([1.0, -2.0], [1.0, torch.nan], [-torch.inf, 1.0], [])]
    [True, False, False, True]
    """
    local = (weight.to_local() if isinstance(weight, DTensor) else weight).detach()
    return not local.numel() or all(math.isfinite(float(end)) for end in local.aminmax())


@contextmanager
def without_weights() -> Iterator[None]:
    """Build modules from their configuration alone, with parameters on the meta device but real buffers.

    Buffers that no checkpoint has, such as the tables of rotary positions, are computed when a module is built; on the
    meta device they would never be filled.
    """
    reset = _READ_WEIGHTS.set(False)
    try:
        with parameters_on_meta():
            yield
    finally:
        _READ_WEIGHTS.reset(reset)


def shard(model: nn.Module, mesh: DeviceMesh, half: bool = False) -> None:
    """Shard a model along the rows of its weights, layer by layer, in place.

    Args:
        model: a transformer, with or without adapter.
        mesh: the processes, one axis.
        half: gather layers in bfloat16; the shards themselves, and sums of gradients, keep their dtype. (Under
            autocast alone every layer would be gathered in full precision and then copied, and the copies stay to the
            end.)

    Raises:
        ValueError: its weights are to be quantized.
    """
    if is_marked(model):
        raise ValueError(
            "loading.quantization with trainer.strategy fsdp: quantized weights are not sharded; take ddp, where each "
            "process holds all of them"
        )
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=True)


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a transformer: the list of modules that holds the most weights.

    >>> stack = nn.Module()
    >>> stack.heads = nn.ModuleList([nn.Linear(2, 2)])
    >>> stack.body = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    >>> len(layers(stack))
    2
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=lambda stack: sum(weight.numel() for weight in stack.parameters()), default=()))


def is_sharded(model: nn.Module) -> bool:
    """Return whether the model's weights are sharded."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather a sharded model once and keep it whole within the context; do nothing to a model that is not sharded.

    Every process must enter and leave the context at the same time, but may call the model inside it as often as it
    likes, without gradient. It holds the whole model in memory, in the dtype that layers are gathered in. Entering it
    again inside has no effect. Enter it with the adapter switched on, see ``Reference.ready``.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts or any(model is other for other in _UNSHARDED.get()):
        yield
        return
    initialize_fsdp_root(model)
    reset = _UNSHARDED.set((*_UNSHARDED.get(), model))
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
        _UNSHARDED.reset(reset)


def fill(models: list[nn.Module], source: Callable[[], nn.Module], device: torch.device) -> None:
    """Load weights that rank zero reads into sharded models without weights; each process keeps its shards.

    The whole model is in the host memory of rank zero alone, and only until this returns.

    Args:
        models: sharded, with the same parameters as the source's.
        source: builds the whole model; called on rank zero only.
        device: of the shards.
    """
    weights: dict[str, Tensor] = {}
    failure: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            weights = source().state_dict()
        except Exception as error:  # raised below in every process: the others wait for rank zero
            failure = [error]
    torch.distributed.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise failure[0]
    for model in models:
        _materialize(model, device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
        set_model_state_dict(model, dict(weights), options=options)
        initialize_fsdp_root(model)


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Allocate the shards; buffers keep their values."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.device.type != "meta"}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
