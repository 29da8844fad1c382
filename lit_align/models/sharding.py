"""Sharding cuts a model's weights into rows, a part for each process; layers are put together while they are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

_WANTED: ContextVar[bool] = ContextVar("weights are wanted", default=True)
_TOGETHER: ContextVar[tuple[nn.Module, ...]] = ContextVar("models that are put together", default=())

Built = TypeVar("Built", bound=nn.Module)


@runtime_checkable
class Build(Protocol):
    """Makes a model of what reads it from its files: whole, or cut among the processes."""

    def __call__(self, source: Callable[[], Built]) -> Built:
        """The model.

        Args:
            source: reads it; may be called more than once, or on some processes only.
        """


def build_whole(source: Callable[[], Built]) -> Built:
    """The model as it is read."""
    return source()


def weights_wanted() -> bool:
    """Whether models are built with their weights: always, but inside ``structure_alone``."""
    return _WANTED.get()


@contextmanager
def structure_alone() -> Iterator[None]:
    """No weights are read meanwhile: models are built from their configuration, and what they hold has no meaning."""
    wanted = _WANTED.set(False)
    try:
        yield
    finally:
        _WANTED.reset(wanted)


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules that are built meanwhile have parameters of shape and dtype alone, but their buffers as ever.

    Buffers that no checkpoint has, such as the tables of rotary positions, are computed as a module is built; left
    empty they would never be filled.
    """
    register = nn.Module.register_parameter

    def empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = empty  # type: ignore[method-assign]
    try:
        with structure_alone():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def shard(model: nn.Module, mesh: DeviceMesh, half: bool = False) -> None:
    """Cut a model along the rows of its weights, layer by layer, in place.

    Args:
        model: a transformer, with or without adapter.
        mesh: the processes, one axis.
        half: layers are put together in bfloat16; the rows themselves, and sums of gradients, keep their dtype. (Under
            autocast alone every layer would be put together whole and then copied, and the copies stay to the end.)
    """
    precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for layer in layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=True)


def layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a transformer: the list of modules that holds the most weights.

    >>> stack = nn.Module()
    >>> stack.heads = nn.ModuleList([nn.Linear(2, 2)])
    >>> stack.body = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    >>> len(layers(stack))
    2
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return []
    weights = [sum(parameter.numel() for parameter in found.parameters()) for found in lists]
    return list(lists[weights.index(max(weights))])


def is_sharded(model: nn.Module) -> bool:
    """Whether the model's weights are cut."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def together(model: nn.Module) -> Iterator[None]:
    """A cut model is put together once, and stays so for as long as the context lasts; another is left alone.

    Every process enters and leaves it at the same time, and may read the model inside as often as it likes, which is
    without gradient. It holds the whole model, in the dtype that layers are put together in. Entering it again inside
    has no effect. It is entered with an adapter on, see ``Reference.ready``.

    Args:
        model: the one that ``shard`` was called with.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not parts or any(model is other for other in _TOGETHER.get()):
        yield
        return
    _settle(model)
    before = _TOGETHER.set((*_TOGETHER.get(), model))
    try:
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()
        _TOGETHER.reset(before)


def fill(models: list[nn.Module], source: Callable[[], nn.Module], device: torch.device) -> None:
    """Give sharded models without weights the weights of one that rank zero builds; each process keeps its rows.

    The whole model is in the memory of rank zero's host alone, and only until this returns.

    Args:
        models: sharded, of the same parameters as the source's.
        source: builds the whole model; called on rank zero only.
        device: of the rows.
    """
    weights: dict[str, Tensor] = {}
    failed: list[Any] = [None]
    first = torch.distributed.get_rank() == 0
    if first:
        try:
            weights = source().state_dict()
        except Exception as error:  # the others wait for rank zero
            failed = [error]
    torch.distributed.broadcast_object_list(failed, src=0)
    if failed[0] is not None:
        raise failed[0]
    for model in models:
        _materialize(model, device)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
        set_model_state_dict(model, dict(weights), options=options)
        _settle(model)


def _settle(model: nn.Module) -> None:
    """Let a cut model find out now which part is its root, and which weights train, whose gradients keep their dtype.

    Left to itself it would at its first call, which may be that of an inner part, or come while an adapter is off.
    """
    root: Any = model
    root._get_fsdp_state()._lazy_init()


def _materialize(model: nn.Module, device: torch.device) -> None:
    """Room for the rows; buffers keep what they were built with."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.device.type != "meta"}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
