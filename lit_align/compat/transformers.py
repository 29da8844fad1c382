"""Private parts of transformers, tried with version 5.23.0; ``tests/compat`` fails when they change."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from functools import partial
from typing import Any

from torch import nn
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import chat_template_utils, logging


def attention_name(model: Any) -> str:
    """Return the name of a model's implementation of attention, which only a private attribute of its config tells."""
    name: str = model.config._attn_implementation
    return name


def recompute_activations(model: Any) -> None:
    """Let a model recompute its activations in the backward pass; the method has another name from 5.23 on."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@contextmanager
def no_gguf_bar() -> Iterator[None]:
    """Leave out the progress bar of the reader of GGUF files, which has no switch, where other bars are off."""
    module: Any = modeling_gguf_pytorch_utils
    own = module.tqdm
    if not logging.is_progress_bar_enabled():
        module.tqdm = partial(own, disable=True)
    try:
        yield
    finally:
        module.tqdm = own


@contextmanager
def unchanged_modeling() -> Iterator[None]:
    """Undo what is set in the modules of models meanwhile: Liger replaces classes and functions for models to come."""
    modules = [module for name, module in [*sys.modules.items()] if name.startswith("transformers.models.")]
    before = [(vars(module), dict(vars(module))) for module in modules if ".modeling_" in module.__name__]
    try:
        yield
    finally:
        for names, values in before:
            names.update(values)


@contextmanager
def template_date(day: date | None) -> Iterator[None]:
    """Let chat templates that ask for the date read a given one; None for the clock.

    ``strftime_now`` is built into every compiled template and cannot be replaced by a variable: callables among the
    variables are turned into text. It calls ``datetime.now()`` of the module that is patched here.

    Args:
        day: the date; its time is midnight.
    """
    module: Any = chat_template_utils
    clock = module.datetime
    if day is not None:
        module.datetime = type("FixedClock", (datetime,), {"now": lambda *_: datetime.combine(day, time())})
    try:
        yield
    finally:
        module.datetime = clock


def router_modules(model: Any) -> list[tuple[nn.Module, int]]:
    """Return the routers of a mixture of experts, each with the place of its logits in what it returns.

    Models say which modules these are where ``output_router_logits`` looks for them; empty for models without any.

    Args:
        model: of transformers, without adapter.
    """
    recorders = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits") or ()
    routers = []
    for recorder in recorders if isinstance(recorders, list | tuple) else [recorders]:
        kind, index = getattr(recorder, "target_class", recorder), getattr(recorder, "index", 0)
        part = getattr(recorder, "layer_name", None) or ""
        routers += [(module, index) for name, module in model.named_modules() if type(module) is kind and part in name]
    return routers
