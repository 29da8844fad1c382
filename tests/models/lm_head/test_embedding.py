"""Sparse rows of an embedding's gradient are added to an existing gradient, or form a new one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_align.models.lm_head.patch import sparse_embedding_grad
from tests.models.architectures import CONFIGS, build

IDS = torch.tensor([[3, 5, 3, 7], [5, 5, 9, 2]])


class Formed(TorchDispatchMode):
    """Counts gradients of the size of an embedding."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten.embedding_dense_backward.default
        return func(*args, **(kwargs or {}))


def pulled(model: nn.Module, rows: list[Tensor], by_row: bool) -> tuple[dict[str, Tensor], int]:
    """Return the gradients after several passes, and how many tensors of the embedding's size were allocated."""
    with Formed() as formed:
        for ids in rows:
            if by_row:
                with sparse_embedding_grad(model):
                    loss = model(input_ids=ids).logits.square().mean()
            else:
                loss = model(input_ids=ids).logits.square().mean()
            loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return found, formed.count


@pytest.mark.parametrize("name", ["llama", "gemma2_window_caps", "gpt2"])
def test_the_sum_is_the_same_and_formed_once(name: str) -> None:
    """Of embeddings that are untied, tied and scaled, and tied with positions beside them."""
    model = build(CONFIGS[name](), torch.float64)
    expected, whole = pulled(copy.deepcopy(model), [IDS, IDS + 4, IDS[:1]], by_row=False)
    found, once = pulled(model, [IDS, IDS + 4, IDS[:1]], by_row=True)
    assert whole - once == 2  # behind the first one
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        assert gradient.layout == torch.strided
        torch.testing.assert_close(gradient, expected[key], rtol=1e-12, atol=1e-12)


def test_the_embedding_is_left_as_it_was() -> None:
    """This also holds after an error, and where there is no gradient to add to."""
    model = build(CONFIGS["llama"]())
    embedding = model.get_input_embeddings()
    with sparse_embedding_grad(model):
        assert not embedding.sparse
    embedding.weight.grad = torch.zeros_like(embedding.weight)
    narrow = build(CONFIGS["llama"](), torch.bfloat16)
    narrow.get_input_embeddings().weight.grad = torch.zeros_like(narrow.get_input_embeddings().weight)
    with sparse_embedding_grad(narrow):
        assert not narrow.get_input_embeddings().sparse
    seen = []
    handle = embedding.register_forward_pre_hook(lambda *_: seen.append(embedding.sparse))
    with pytest.raises(IndexError), sparse_embedding_grad(model):
        model(input_ids=torch.tensor([[10_000]]))
    handle.remove()
    assert (seen, embedding.sparse) == ([True], False)
