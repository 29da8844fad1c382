"""A rehearsal runs a training step on tensors that have shapes but no values, and watches bytes and operations."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lit_align.models.sharding import layers

_LARGE = 2**20
"""Elements above which a tensor that is made from nothing has no values either."""
_MORE: dict[Any, Callable[..., int]] = {
    torch.ops.aten.addmm_: lambda _, one, two, **__: 2 * one.shape[0] * one.shape[1] * two.shape[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}


def shapes_alone() -> FakeTensorMode:
    """A mode whose tensors have no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def give_shapes(mode: FakeTensorMode, model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put a tensor on the CPU that has no values in the place of each weight that has no place.

    Args:
        mode: that these tensors belong to.
        model: built without weights; weights that it shares stay shared.
        dtype: of these tensors; None for the weights' own.
    """
    found: dict[nn.Parameter, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if weight not in found:
                    empty = torch.empty(weight.shape, dtype=dtype or weight.dtype)
                    found[weight] = nn.Parameter(empty, requires_grad=weight.requires_grad)
                module._parameters[name] = found[weight]


class Watch(TorchDispatchMode):
    """Counts the bytes of all tensors without values that are alive, at most and now, and the operations.

    Args:
        mode: that the weights belong to; large tensors that are made from nothing are made in it.
        share: of how many parts of each gradient one is kept, once it is whole.
    """

    def __init__(self, mode: FakeTensorMode, share: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.gradients = self.beside = 0
        self.gradients_then = 0
        self.operations = 0
        self._mode = mode
        self._share = share
        self._known: dict[int, Any] = {}

    def count(self, tensors: Sequence[Tensor]) -> None:
        """Take tensors in that were there before."""
        for tensor in tensors:
            self._enter(tensor)

    def forget(self, tensors: list[Tensor]) -> None:
        """Leave tensors out that were there before."""
        for tensor in tensors:
            self._enter(tensor, counts=False)

    def start_over(self) -> None:
        """Let the peaks be what is alive now."""
        self.peak = self.beside = self.live
        self.gradients_then = self.gradients

    def is_gradient(self, weight: Tensor) -> None:
        """Hear that a weight has its gradient."""
        if weight.grad is not None:
            size = weight.grad.untyped_storage().nbytes()
            self.gradients += size // self._share
            self.live -= size - size // self._share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()  # where the program looks at a value: a harmless one
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        with self._mode if not given and _elements(args) > _LARGE else nullcontext():
            out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._enter(leaf)
        packet = func._overloadpacket
        if packet in _MORE:
            self.operations += _MORE[packet](*args, **kwargs)
        elif packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=out)
        return out

    def _enter(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known[key] = weakref.finalize(storage, self._leave, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak, self.gradients_then = self.live, self.gradients
        self.beside = max(self.beside, self.live - self.gradients)

    def _leave(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size


def _elements(args: Any) -> int:
    sizes = args[0] if args and isinstance(args[0], list | tuple) else ()
    count = 1
    for size in sizes:
        count *= size if isinstance(size, int) else 0
    return count if sizes else 0


@dataclass(frozen=True)
class Settings:
    """What of a run's settings a rehearsal looks at.

    Args:
        precision: ``bf16-mixed`` casts weights that are whole where they are used; cut ones are in 16 bits already.
        share: see ``Watch``.
    """

    precision: str = "32-true"
    share: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context, as Lightning opens it: casts are not kept for a second use."""
        if self.precision != "bf16-mixed" or self.share > 1:
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


@dataclass(frozen=True)
class Step:
    """What a micro-batch needs beside weights and optimizer states, in bytes; and what it computes.

    Args:
        activations: kept for the backward pass, behind the policy's last layer.
        forward: most that is alive in the forward pass, gradients of an earlier one aside.
        backward: most that is alive in the backward pass, with the gradients as they come.
        gradients: those of them that are there at that time.
        beside: most that is alive in the backward pass without the gradients.
        left: what stays behind it, without the gradients.
        operations: floating-point operations of both passes, the frozen models' included.
    """

    activations: int
    forward: int
    backward: int
    gradients: int
    beside: int
    left: int
    operations: int


def rehearse(
    mode: FakeTensorMode, models: Sequence[nn.Module], loss: Callable[[], Tensor], settings: Settings
) -> Step:
    """Rehearse the forward and backward pass of one micro-batch.

    Args:
        mode: that the weights belong to.
        models: what is trained, and then the frozen ones beside it.
        loss: computes the loss with the program's own code.
        settings: of the run.
    """
    module = models[0]
    watch = _watch(mode, models, settings)
    hooks = [p.register_post_accumulate_grad_hook(watch.is_gradient) for p in module.parameters() if p.requires_grad]
    behind: list[int] = []
    hooks += [last.register_forward_hook(lambda *_: behind.append(watch.live)) for last in _last(module)]
    with watch:
        with settings.autocast():
            found = loss()
        forward, activations = watch.peak, max(behind)
        watch.start_over()
        found.backward()
        del found
    for hook in hooks:
        hook.remove()
    left = max(0, watch.live - watch.gradients)
    step = Step(activations, forward, watch.peak, watch.gradients_then, watch.beside, left, watch.operations)
    for parameter in module.parameters():
        parameter.grad = None
    return step


def rehearse_reading(
    mode: FakeTensorMode,
    models: Sequence[nn.Module],
    read: Callable[[], object],
    settings: Settings,
    there: Callable[[], Sequence[Tensor]] = tuple,
) -> tuple[int, int]:
    """Bytes that are alive at most while something is read without gradient, and the operations.

    Args:
        mode: that the weights belong to.
        models: all that are there.
        read: does it.
        settings: of the run.
        there: gives what is alive already and counts, for as long as it lives.
    """
    watch = _watch(mode, models, settings)
    watch.count(there())
    with watch, torch.no_grad(), settings.autocast():
        read()
    return watch.peak, watch.operations


def _watch(mode: FakeTensorMode, models: Sequence[nn.Module], settings: Settings) -> Watch:
    watch = Watch(mode, settings.share)
    watch.forget([weight for model in models for weight in (*model.parameters(), *model.buffers())])
    return watch


def _last(module: nn.Module) -> list[nn.Module]:
    """The last layer of each model of a module, or the module where none has layers that repeat."""
    found = [layers(model)[-1] for model in module.children() if layers(model)]
    return found or [module]
