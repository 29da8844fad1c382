"""Private parts of transformers, tried with version 5.23.0; ``tests/compat`` fails when they change."""

from __future__ import annotations

from typing import Any


def attention_name(model: Any) -> str:
    """Return the name of a model's implementation of attention, which only a private attribute of its config tells.

    Args:
        model: of transformers, without adapter.
    """
    name: str = model.config._attn_implementation
    return name
