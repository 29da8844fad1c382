"""The gradient of an embedding is as large as the embedding, and few of its rows are not zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.tensor import DTensor

from lit_align.models.output_head import base_of

FULL = 4
"""Bytes of a number in full precision."""


@contextmanager
def rows_added(model: nn.Module) -> Iterator[None]:
    """Let what is read meanwhile add its rows to the embedding's gradient, not form a second one of its size.

    The sum is the same. It is for portions of a step: their backward passes come before the gradients are reset.
    Nothing is changed where there is no gradient yet, on other devices than a CPU, where weights are sharded, and in
    16 bits, where adding row by row would round more often.

    Args:
        model: a model of transformers, with or without an adapter or a score head.
    """
    embedding = base_of(model).get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or not _has_rows(embedding):
        yield
        return
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False


def _has_rows(embedding: nn.Embedding) -> bool:
    gradient = embedding.weight.grad
    if gradient is None or isinstance(gradient, DTensor) or gradient.is_sparse or gradient.device.type != "cpu":
        return False
    return not embedding.sparse and not embedding.scale_grad_by_freq and gradient.itemsize >= FULL
