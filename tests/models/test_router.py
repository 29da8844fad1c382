"""The load-balancing loss of routers: the number of transformers, the same however pairs are laid out or split."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_align.compat.transformers import recompute_activations
from lit_align.models import ForwardPass, LogProbReader
from lit_align.models.router import RouterBalance
from lit_align.types import PairBatch
from tests.conftest import pair_batch, tiny_llama
from tests.models.architectures import GROUPED

FAMILIES: dict[str, Any] = {
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4),
    "olmoe": lambda: hf.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **GROUPED, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}
PROMPT = list(range(5, 25))


def batch() -> PairBatch:
    return pair_batch(
        prompts=[PROMPT, [1, 8], [*PROMPT, 30]],
        responses=[([14, 15, 2], [16, 2]), ([17, 18, 19, 20, 2], [21, 2]), ([22, 2], [23, 24, 25, 2])],
    )


def mixture(family: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="sdpa")
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight"):
                torch.nn.init.normal_(weight, std=2.0)
    return model.eval()


def losses(model: Any, layout: Any, pairs: PairBatch) -> Tensor:
    reader = LogProbReader(model)
    reader.use(layout)
    reader.router = RouterBalance(model)
    reader(pairs)
    found = reader.take_router_losses()
    assert found is not None
    assert reader.take_router_losses() is None
    return found


def of_transformers(model: Any, pairs: PairBatch, pair: int) -> Tensor:
    """One pair as a batch of two padded rows, without the last token of each."""
    ids, lengths = pairs.input_ids[pair], pairs.attention_mask[pair].sum(-1)
    mask = (torch.arange(ids.shape[-1]) < (lengths - 1).unsqueeze(-1)).long()
    routed = model(input_ids=ids, attention_mask=pairs.attention_mask[pair].long(), output_router_logits=True)
    return torch.as_tensor(load_balancing_loss_func(routed.router_logits, 4, 2, mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_loss_of_transformers_in_every_layout(family: str) -> None:
    model, pairs = mixture(family), batch()
    expected = torch.stack([of_transformers(model, pairs, pair) for pair in range(3)]).double()
    gradients = []
    for layout in ("padded", "packed", "shared", "plain"):
        found = losses(model, layout, pairs)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
        weights = [router.get_parameter("weight") for router, _ in RouterBalance(model).routers]
        gradients.append(torch.autograd.grad(found.sum(), weights))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients[0])


def test_a_pair_has_the_same_loss_in_any_batch() -> None:
    model, pairs = mixture("mixtral"), batch()
    whole = losses(model, "shared", pairs)
    parts = [losses(model, "shared", pairs.rows(slice(start, end))) for start, end in ((0, 1), (1, 3))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, pairs = mixture("mixtral"), batch()
    expected = torch.autograd.grad(losses(model, "shared", pairs).sum(), model.parameters(), allow_unused=True)
    recompute_activations(model)
    model.train()
    found = torch.autograd.grad(losses(model, "shared", pairs).sum(), model.parameters(), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_nothing_is_recorded_without_gradients() -> None:
    model = mixture("olmoe")
    reader = LogProbReader(model, ForwardPass(layout="padded"))
    reader.router = RouterBalance(model)
    with torch.no_grad():
        reader(batch())
    assert reader.take_router_losses() is None


def test_a_model_without_routers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.router_loss is for mixtures .*llama is none: leave it out"):
        RouterBalance(tiny_llama())
