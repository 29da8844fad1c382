"""A stand-in for a device: CPU tensors behind the device ``meta``, which refuse to mix and count waits of the host."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
"""Operations whose result, or its shape, the host has to know before it goes on."""


class OnDevice(Tensor):
    """A tensor that says it is on the device, and holds its values in CPU memory."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        """Give the values to the host, which waits for them."""
        wait("tolist")
        return self.inner.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


counted: list[str] = []


def wait(function: object) -> None:
    frames = [
        f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack() if "lit_align/" in frame.filename
    ]
    counted.append(f"{function} at {frames[-1] if frames else '?'}")


def run(function: Any, args: Any, kwargs: Any) -> Any:
    flat = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    here = any(isinstance(leaf, OnDevice) for leaf in flat)
    target = kwargs.get("device")
    if function in (aten._to_copy.default, aten.copy_.default):
        here = _moved_to(function, flat, target, here, kwargs)
    elif here:
        mixed = [leaf for leaf in flat if not isinstance(leaf, OnDevice) and leaf.dim() and leaf.numel()]
        assert not mixed, f"{function} mixes tensors of two devices: {[(leaf.device, leaf.shape) for leaf in flat]}"
        if function in WAITS or (function is aten.index.Tensor and _has_mask(args[1])):
            wait(function)
    elif target is not None:
        here = torch.device(target) == DEVICE
    kwargs = {**kwargs, "device": torch.device("cpu")} if target is not None else kwargs
    args, kwargs = tree_map(lambda leaf: leaf.inner if isinstance(leaf, OnDevice) else leaf, (args, kwargs))
    result = function(*args, **kwargs)
    if not here or function is aten._local_scalar_dense.default:
        return result
    if function._schema.is_mutable:  # in place: the same object, whose inner tensor has changed
        return _object_of(flat, result)
    return tree_map(lambda leaf: OnDevice(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _moved_to(function: Any, flat: list[Tensor], target: Any, here: bool, kwargs: Any) -> bool:
    """Count a copy between devices that is waited for; return whether its result is on the device."""
    if function is aten.copy_.default:
        across = isinstance(flat[0], OnDevice) != isinstance(flat[1], OnDevice)
        result = isinstance(flat[0], OnDevice)
    else:
        result = here if target is None else torch.device(target) == DEVICE
        across = result != here
    if across and not kwargs.get("non_blocking"):
        wait("a blocking copy")
    return result


def _object_of(flat: list[Tensor], result: Any) -> Any:
    """Return the tensor that an operation in place has changed."""
    owners = [leaf for leaf in flat if isinstance(leaf, OnDevice)]
    return None if result is None else next((leaf for leaf in owners if leaf.inner is result), owners[0])


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(function, args, kwargs or {})


@contextmanager
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let tensors be made on the stand-in device; yields the waits so far."""
    counted.clear()
    with monkeypatch.context() as patch, _Factories():
        real = torch.autocast

        class Autocast(real):  # type: ignore[misc, valid-type]
            def __init__(self, kind: str, *given: Any, **options: Any) -> None:
                super().__init__("cpu" if kind == DEVICE.type else kind, *given, **options)

        patch.setattr(torch, "autocast", Autocast)
        make = torch.tensor

        def tensor(values: Any, *given: Any, device: Any = None, **options: Any) -> Tensor:
            made = make(values, *given, **options)
            if device is None or torch.device(device) != DEVICE:
                return made
            wait("torch.tensor")
            return OnDevice(made)

        patch.setattr(torch, "tensor", tensor)
        enabled = torch.is_autocast_enabled
        patch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": enabled("cpu" if kind == "meta" else kind))
        yield counted


def on_device(model: nn.Module) -> nn.Module:
    """Put the weights of a model on the stand-in device, in place."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(OnDevice(weight.detach()), weight.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = OnDevice(value)
    return model
