"""Dry runs: the program's own code on fake tensors, whose bytes and operations are counted."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lit_align.models.sharding import layers
from lit_align.plan.memory import Parallelism, PassCost, sum_bytes

_LARGE = 2**20
"""Elements above which a tensor that is made without inputs is fake, too."""
_OPERATIONS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.addmm_: lambda _, left, right, **__: 2 * left.shape[0] * left.shape[1] * right.shape[1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
        q.shape, k.shape, v.shape
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
        sdpa_backward_flop_count(g.shape, q.shape, k.shape, v.shape)
    ),
}


class Tracker(TorchDispatchMode):
    """Count the bytes of the fake tensors that are alive, now and at most, and the floating-point operations.

    Args:
        mode: of the weights; large tensors that are made without inputs are made in it.
        uncounted: tensors that exist already, and are taken to have no size.
        counted: tensors that exist already, and count while they are alive.
        shards: a finished gradient keeps one of so many parts.
    """

    def __init__(
        self, mode: FakeTensorMode, uncounted: Iterable[Tensor], counted: Iterable[Tensor] = (), shards: int = 1
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.peak_alone = 0
        self.gradients = self.peak_gradients = 0
        self.operations = 0
        self._mode = mode
        self._shards = shards
        self._known: dict[int, Any] = {}
        for tensor in uncounted:
            self._add(tensor, counts=False)
        for tensor in counted:
            self._add(tensor)

    def _add(self, tensor: Tensor, counts: bool = True) -> None:
        """Follow a tensor's memory until it is freed; it may share that of a known one."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known[key] = weakref.finalize(storage, self._remove, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak, self.peak_gradients = self.live, self.gradients
        self.peak_alone = max(self.peak_alone, self.live - self.gradients)

    def _remove(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size

    def reset_peaks(self) -> None:
        """Set all peaks to what is alive now."""
        self.peak = self.peak_alone = self.live
        self.peak_gradients = self.gradients

    def add_gradient(self, weight: Tensor) -> None:
        """Count a weight's gradient as such, once it is complete.

        Args:
            weight: whose gradient it is.
        """
        if weight.grad is not None:
            size = weight.grad.untyped_storage().nbytes()
            self.gradients += size // self._shards
            self.live -= size - size // self._shards

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two of three calls only ask for a tensor's device
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()  # a harmless value where the program looks at one
        with self._mode if _elements(args) > _LARGE else nullcontext():
            out = func(*args, **kwargs)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._add(leaf)
        packet = func._overloadpacket
        if packet in _OPERATIONS:
            self.operations += _OPERATIONS[packet](*args, **kwargs, out_val=out)
        return out


def _elements(args: Any) -> int:
    """Return the number of elements that a tensor made without inputs gets from the shape that comes first; else 0."""
    shape = args[0] if args and isinstance(args[0], list | tuple) else (0,)
    return math.prod(size if isinstance(size, int) else 0 for size in shape)


@dataclass(frozen=True)
class DryRun:
    """Measure passes of models that have no weights.

    Args:
        mode: of the fake weights.
        models: the trained module, and then all frozen models.
        parallelism: of the run.
    """

    mode: FakeTensorMode
    models: Sequence[nn.Module]
    parallelism: Parallelism

    def train(self, loss: Callable[[], Tensor]) -> PassCost:
        """Measure the forward and backward pass of a loss.

        Args:
            loss: computes the loss with the program's own code.
        """
        module, tracker, activations = self.models[0], self._tracker(), [0]
        trained = [p for p in module.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(tracker.add_gradient) for p in trained]
        last_layers = [layers(model)[-1] for model in module.children() if layers(model)] or [module]
        hooks += [last.register_forward_hook(lambda *_: activations.append(tracker.live)) for last in last_layers]
        with tracker:
            with self._autocast():
                value = loss()
            forward = tracker.peak
            tracker.reset_peaks()
            value.backward()
            del value
        left = max(0, tracker.live - tracker.gradients)
        for hook in hooks:
            hook.remove()
        for parameter in trained:
            parameter.grad = None
        return PassCost(
            activations=max(activations),
            forward=forward,
            backward=tracker.peak,
            gradients=tracker.peak_gradients,
            backward_alone=tracker.peak_alone,
            left=left,
            operations=tracker.operations,
        )

    def read(self, read: Callable[[], object], counted: Iterable[Tensor] = ()) -> tuple[int, int]:
        """Measure something that is done without gradients: the peak in bytes, and the operations.

        Args:
            read: does it.
            counted: tensors that exist already and count while they are alive.
        """
        tracker = self._tracker(counted)
        with tracker, torch.no_grad(), self._autocast():
            read()
        return tracker.peak, tracker.operations

    def _tracker(self, counted: Iterable[Tensor] = ()) -> Tracker:
        weights = [weight for model in self.models for weight in (*model.parameters(), *model.buffers())]
        return Tracker(self.mode, weights, counted, self.parallelism.shards)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the run's precision; Lightning does not keep casts for a second use either."""
        if self.parallelism.precision != "bf16-mixed" or self.parallelism.shards > 1:
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def fake_weights(mode: FakeTensorMode, model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace all weights by fake ones on the CPU, in place; shared weights stay shared.

    Args:
        mode: of the fake weights.
        model: built without weights.
        dtype: of the fake weights; None for that of each weight.
    """
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if weight not in replaced:
                    fake = torch.empty(weight.shape, dtype=dtype or weight.dtype)
                    replaced[weight] = nn.Parameter(fake, requires_grad=weight.requires_grad)
                module._parameters[name] = replaced[weight]


def optimizer_memory(optimizer: OptimizerCallable, weights: Sequence[Tensor], device: str) -> tuple[int, int]:
    """Measure the states of an optimizer and the temporaries of its step, in bytes.

    The first of two steps creates the states. Unless it is told otherwise, an optimizer of PyTorch updates all weights
    at once on a GPU and one after the other on a CPU, which decides about the temporaries.

    Args:
        optimizer: creates the optimizer from a list of weights.
        weights: what is trained; their values are not read.
        device: ``cuda`` or ``cpu``.

    >>> from torch.optim import AdamW
    >>> weights = [torch.zeros(64, 64), torch.zeros(128, 64)]
    >>> [optimizer_memory(AdamW, weights, device)[1] // (4 * 64) for device in ("cpu", "cuda")]
    [320, 192]
    """
    mode = fake_mode()
    with mode:
        trained = [nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)) for weight in weights]
        for weight in trained:
            weight.grad = torch.empty_like(weight)
    instance: Any = optimizer(trained)
    for group in instance.param_groups:
        if "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = device == "cuda"
    tracker = Tracker(mode, [tensor for weight in trained for tensor in (weight, weight.grad) if tensor is not None])
    with tracker:
        instance.step()
        before = tracker.live
        tracker.reset_peaks()
        instance.step()
    leaves = tree_leaves(list(instance.state.values()))
    states = {id(leaf): leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.numel() > 1}
    return sum_bytes(states.values()), tracker.peak - before


def fake_mode() -> FakeTensorMode:
    """Return a mode whose tensors have shapes and no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)
