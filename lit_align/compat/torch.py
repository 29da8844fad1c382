"""Private parts of PyTorch, tried with version 2.13.0; ``tests/compat`` fails when they change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Replace ``nn.Module.register_parameter``: modules built meanwhile have parameters without data.

    ``torch.device("meta")`` would leave buffers without data too, some of which are only computed at construction.
    """
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def initialize_fsdp_root(model: nn.Module) -> None:
    """Let FSDP determine now which module is the root, and which weights train and whose gradients keep their dtype.

    By default it would at the first call, which may be that of an inner module, or happen while an adapter is off.
    """
    root: Any = model
    root._get_fsdp_state()._lazy_init()


def event_file_writer(summary_writer: Any) -> Any:
    """Return the file writer of a TensorBoard SummaryWriter, which accepts any event."""
    return summary_writer._get_file_writer()


def leave_unscaling(optimizer: Optimizer) -> None:
    """Let the gradients of an optimizer be clipped although ``fused`` is an argument of its constructor.

    PyTorch marks such an optimizer as one that takes the scale of float16 off the gradients itself, after they would
    be clipped, and Lightning refuses to clip them in ``bf16-mixed`` too, where there is no scale.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
