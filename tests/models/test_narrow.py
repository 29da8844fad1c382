"""Weights in the autocast dtype give the same numbers to the bit, and come back as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_align.models.narrow import narrow_weights, narrowed
from lit_align.models.reference.base import SecondModel
from tests.models.architectures import CONFIGS, build


@pytest.mark.parametrize(("name", "narrow"), [("llama", 15), ("llama_tied", 14)])
def test_nothing_changes_by_a_bit(name: str, narrow: int) -> None:
    model, ids = build(CONFIGS[name](), torch.float32), torch.arange(3, 20)[None]
    weights = [weight.clone() for weight in model.parameters()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = model(ids).logits
        with narrowed(model):
            assert sum(weight.dtype == torch.bfloat16 for weight in model.parameters()) == narrow
            assert torch.equal(model(ids).logits, expected)
        assert all(torch.equal(new, old) for new, old in zip(model.parameters(), weights, strict=True))
        narrow_weights(model, torch.bfloat16)
        assert torch.equal(model(ids).logits, expected)
    with narrowed(build(CONFIGS[name](), torch.float32)) as nothing:
        assert nothing is None


def test_a_reference_leaves_what_it_shares_with_the_policy() -> None:
    policy = build(CONFIGS["llama"](), torch.float32)
    head: nn.Module = policy.get_submodule("lm_head").requires_grad_(False)
    reference = SecondModel()
    reference.attach(policy)  # type: ignore[arg-type]
    reference.narrow(torch.bfloat16, policy)
    assert all(weight.dtype == torch.float32 for weight in policy.parameters())
    with reference.active() as model:
        assert model.get_parameter("lm_head.weight") is head.weight
        assert model.get_parameter("model.layers.0.mlp.up_proj.weight").dtype == torch.bfloat16
        assert model.get_parameter("model.norm.weight").dtype == torch.float32
