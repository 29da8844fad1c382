"""Kernels in place of a model's own layers: compiled ones, or Liger's, where they are installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lit_align.models.sharding import layers

BACKEND = "inductor"
"""Of ``torch.compile``."""


def compile_layers(model: nn.Module) -> None:
    """Compile a transformer layer by layer, in place, for any length; it happens when they are first called.

    Layers are alike, so that the first one's code serves all. The names of weights stay.

    Args:
        model: a transformer, with or without adapter.
    """
    for layer in layers(model):
        layer.compile(dynamic=True, backend=BACKEND)


def use_liger(model: PreTrainedModel) -> None:
    """Norms, rotary positions and gated layers by Liger's kernels; losses and the output head stay ours.

    Args:
        model: as it was loaded.

    Raises:
        ValueError: there is no CUDA device, Liger is not installed, or it has nothing for this architecture.
    """
    if not torch.cuda.is_available():
        raise ValueError("loading.kernels is liger, whose kernels need a CUDA device; none is there")
    if find_spec("liger_kernel") is None:
        raise ValueError("loading.kernels is liger, which is not installed: pip install liger-kernel")
    liger: Any = import_module("liger_kernel.transformers.monkey_patch")
    known, kind = liger.MODEL_TYPE_TO_APPLY_LIGER_FN, model.config.model_type
    if kind not in known:
        raise ValueError(f"loading.kernels is liger, which has none for {kind}; it has: {', '.join(sorted(known))}")
    liger._apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
