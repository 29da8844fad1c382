"""Dry runs: the program's own code on fake tensors, whose bytes and operations are counted."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lit_align.models.logps.check import LADDER
from lit_align.models.quantization import stored_bytes, whole_layer_bytes
from lit_align.models.sharding import layers
from lit_align.modules import Module
from lit_align.modules.optimizer import build_optimizer
from lit_align.plan.memory import Memory, Parallelism, Phase

Measured = TypeVar("Measured")
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
        """Count a weight's gradient as such, once it is complete."""
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
        # the number of elements that a tensor made without inputs gets from the shape that comes first
        shape = args[0] if args and isinstance(args[0], list | tuple) else (0,)
        elements = math.prod(size if isinstance(size, int) else 0 for size in shape)
        with self._mode if elements > _LARGE else nullcontext():
            out = func(*args, **kwargs)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, FakeTensor):
                self._add(leaf)
        packet = func._overloadpacket
        if packet in _OPERATIONS:
            self.operations += _OPERATIONS[packet](*args, **kwargs, out_val=out)
        return out


class DryRun:
    """One process of a run, on fake tensors: measures the memory of its phases and its operations.

    Args:
        module: what is trained; its weights become fake, as those of the other models.
        frozen: models that are not trained.
        released: models that are released before the first step.
        parallelism: of the run.
    """

    def __init__(
        self, module: Module, frozen: Sequence[nn.Module], released: Sequence[nn.Module], parallelism: Parallelism
    ) -> None:
        self.module, self.released, self.parallelism = module, released, parallelism
        if parallelism.device == "cuda":
            module.readers.rehearse(parallelism.device_memory)
        self._models = [module, *frozen, *released]
        self._trained = [model for model in module.children() if any(True for _ in model.parameters())]
        shards, several = parallelism.shards, parallelism.processes > 1
        weights = [p for p in module.parameters() if p.requires_grad]
        build = partial(build_optimizer, module.optimizer, module=module, decay_norms_and_biases=True)
        states, working = optimizer_memory(build, weights, parallelism.device)
        self._gradients, self._optimizer_working = sum_bytes(weights) // shards, working // shards
        self.resident = Memory(
            parameters=stored_bytes(module) // shards,
            optimizer=states // shards,
            frozen=sum(stored_bytes(model) for model in frozen) // shards,
            communication=self._gradients if several and not parallelism.sharded else 0,  # DDP's buckets
        )
        self._whole_layer = max(map(whole_layer_bytes, self._models))
        self.gathered_layers = self._gathered_model = 0
        if several and parallelism.sharded:
            self.gathered_layers = _gathered_layers(self._trained, frozen, parallelism)
            self._gathered_model = max(_gathered(model, parallelism) for model in (*self._trained, *frozen))
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        for model in self._models:
            _fake_weights(self._mode, model, torch.bfloat16 if parallelism.gathers_bfloat16 else None)

    def train(
        self, loss: Callable[[], Tensor], is_part: bool, head_gradient: int = 0
    ) -> tuple[dict[Phase, Memory], int]:
        """Return the memory of an optimizer step in each of its phases, and the operations of one pass.

        Args:
            loss: computes the loss with the program's own code.
            is_part: whether the gradients of several passes are added up, so that they exist before the last pass.
            head_gradient: bytes of the output head's gradient where chunks add it up outside of ``.grad``, so that it
                counts among the temporaries of the pass.
        """
        tracker, activations = self._tracker(), [0]
        weights = [p for p in self.module.parameters() if p.requires_grad]
        hooks = [p.register_post_accumulate_grad_hook(tracker.add_gradient) for p in weights]
        last_layers = [layers(model)[-1] for model in self.module.children() if layers(model)] or [self.module]
        hooks += [last.register_forward_hook(lambda *_: activations.append(tracker.live)) for last in last_layers]
        with tracker:
            with self._autocast():
                value = loss()
            forward, kept = tracker.peak, max(activations)
            tracker.reset_peaks()
            value.backward()
            del value
        left = max(0, tracker.live - tracker.gradients)
        for hook in hooks:
            hook.remove()
        for weight in weights:
            weight.grad = None
        before = self._gradients - head_gradient if is_part else 0
        during = before if is_part else tracker.peak_gradients
        backward = tracker.peak_alone if is_part else tracker.peak - during
        phases: dict[Phase, Memory] = {
            "forward": self._loss_phase(before, kept, forward - kept),
            "backward": self._loss_phase(during, min(kept, backward), backward - kept),
            "step": replace(self.resident, gradients=self._gradients, working=left + self._optimizer_working),
        }
        return phases, tracker.operations

    def _loss_phase(self, gradients: int, activations: int, working: int) -> Memory:
        communication = self.resident.communication + self.gathered_layers
        return replace(
            self.resident,
            gradients=gradients,
            activations=activations,
            working=max(0, working) + self._whole_layer,
            communication=communication,
        )

    def rollout(self, working: int, cache: int = 0) -> Memory:
        """Return the memory while responses are written or scored, when there are no gradients.

        Args:
            working: bytes of temporaries.
            cache: bytes of keys and values.
        """
        communication = self.resident.communication + self._gathered_model
        working += self._whole_layer
        return replace(self.resident, working=working, cache=cache, communication=communication)

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

    def in_first_layout(self, run: Callable[[], Measured]) -> Measured:
        """Run in the first layout that the models can be read in, as a training run chooses it with real weights."""
        chosen = self.module.readers.how.layout
        for layout in LADDER if chosen == "auto" else (chosen,):
            for model in (*self._trained, *self._models[1:]):
                self.module.readers.assume(model, layout)
            try:
                return run()
            except Exception as error:  # noqa: BLE001 (whatever a model does with inputs that it was not made for)
                refused = error
        raise refused

    def _tracker(self, counted: Iterable[Tensor] = ()) -> Tracker:
        weights = [weight for model in self._models for weight in (*model.parameters(), *model.buffers())]
        return Tracker(self._mode, weights, counted, self.parallelism.shards)

    def _autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the run's precision; Lightning does not keep casts for a second use either."""
        if self.parallelism.precision != "bf16-mixed" or self.parallelism.shards > 1:
            return nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def _gathered_layers(trained: Sequence[nn.Module], frozen: Sequence[nn.Module], parallelism: Parallelism) -> int:
    """Return the bytes that are gathered while a loss is computed.

    The weights outside the layers are whole during a pass, and two layers at a time; the gradients of a layer are
    whole in float32. Frozen models are read one after the other, while those of a trained model stay gathered.
    """

    def layer_bytes(model: nn.Module) -> list[int]:
        return [_gathered(part, parallelism) for part in layers(model)]

    def outside(model: nn.Module) -> int:
        return _gathered(model, parallelism) - sum(layer_bytes(model))

    def largest(model: nn.Module) -> int:
        return max(layer_bytes(model), default=0)

    while_trained = sum(map(outside, trained)) + 2 * max(map(largest, trained))
    while_read = max((outside(model) + 2 * largest(model) for model in frozen), default=0)
    numbers = (sum(p.numel() for p in part.parameters()) for model in trained for part in layers(model))
    return max(while_trained, while_read) + 4 * max(numbers, default=0)


def _gathered(model: nn.Module, parallelism: Parallelism) -> int:
    """Return the bytes of weights as they are gathered."""
    most = 2 if parallelism.gathers_bfloat16 else 8
    return sum(p.numel() * min(most, p.element_size()) for p in model.parameters())


def _fake_weights(mode: FakeTensorMode, model: nn.Module, dtype: torch.dtype | None) -> None:
    """Replace all weights by fake ones on the CPU, in place, of one dtype or of their own; shared ones stay shared."""
    with mode:
        fakes = {
            p: nn.Parameter(torch.empty(p.shape, dtype=dtype or p.dtype), p.requires_grad) for p in model.parameters()
        }
    for module in model.modules():
        owned = {name: fakes[weight] for name, weight in module._parameters.items() if weight is not None}
        module._parameters.update(owned)


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
    mode = FakeTensorMode(allow_non_fake_inputs=True)
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


def sum_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)
