"""Memory of optimizers, compared with numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.optim import SGD, Adafactor, AdamW, Optimizer, RMSprop

from lit_align.plan.dry_run import optimizer_memory

WEIGHTS = [torch.zeros(64, 64), torch.zeros(128, 64)]
ALL, LARGEST = 4 * 3 * 64 * 64, 4 * 128 * 64
FACTORS = 4 * (64 + 64 + 128 + 64)
"""Bytes of all weights, of the largest one, and of a row and a column of each."""


@pytest.mark.parametrize(
    ("optimizer", "states", "at_once"),
    [
        (AdamW, 2 * ALL, ALL),  # the root of the second moments
        (partial(AdamW, fused=True), 2 * ALL, 0),
        (SGD, 0, 0),
        (partial(SGD, momentum=0.9), ALL, 0),
        (partial(SGD, weight_decay=0.1), 0, ALL),  # gradients with the decay in them
        (partial(RMSprop, momentum=0.9), 2 * ALL, ALL),
        (Adafactor, FACTORS, ALL),
    ],
)
def test_states_and_arithmetic_on_a_gpu(optimizer: Callable[..., Optimizer], states: int, at_once: int) -> None:
    kept, working = optimizer_memory(optimizer, WEIGHTS, "cuda")
    assert kept == states
    assert working == pytest.approx(at_once, rel=0.1)


def test_on_a_cpu_one_weight_is_updated_after_the_other() -> None:
    """AdamW's root of the largest one, a copy of it divided, and the last weight's root, which it still holds."""
    assert optimizer_memory(AdamW, WEIGHTS, "cpu") == (2 * ALL, 2 * LARGEST + ALL - LARGEST)


def test_states_are_of_the_weights_dtype() -> None:
    weights = [weight.bfloat16() for weight in WEIGHTS]
    assert optimizer_memory(AdamW, weights, "cuda")[0] == ALL
