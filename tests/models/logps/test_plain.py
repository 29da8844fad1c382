"""Log-probabilities compared with a simple loop in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from lit_align.models import response_log_probs
from lit_align.models.logps.plain import packed_mask
from lit_align.types import PairBatch
from tests.conftest import pair_batch, tiny_llama

TOKENS = st.integers(3, 30)
RESPONSE = st.lists(TOKENS, min_size=1, max_size=9)
PAIRS = st.lists(
    st.tuples(st.lists(TOKENS, min_size=1, max_size=9), RESPONSE, RESPONSE),
    min_size=1,
    max_size=4,
)


def one_by_one(model: torch.nn.Module, batch: PairBatch) -> list[list[float]]:
    """log π of each scored token, a response at a time, without padding."""
    found = []
    for ids, attention, mask in zip(
        batch.input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1), batch.mask.flatten(0, 1), strict=True
    ):
        row = ids[attention].unsqueeze(0)
        logits = model(input_ids=row).logits[0].double()
        scored = mask[attention].nonzero().flatten().tolist()
        found.append([float(torch.log_softmax(logits[place - 1], -1)[row[0, place]]) for place in scored])
    return found


def unpacked(values: Tensor, batch: PairBatch) -> list[list[float]]:
    return [
        row[: int(length)].tolist() for row, length in zip(values.flatten(0, 1), batch.lengths.flatten(), strict=True)
    ]


@pytest.mark.fault("A03b", "D33", "D34")
@settings(max_examples=25, deadline=None)
@given(PAIRS)
def test_equals_a_plain_loop(pairs: list[tuple[list[int], list[int], list[int]]]) -> None:
    model = tiny_llama().double()
    batch = pair_batch([prompt for prompt, _, _ in pairs], [(chosen, rejected) for _, chosen, rejected in pairs])
    values = response_log_probs(model, batch)
    for ours, theirs in zip(unpacked(values, batch), one_by_one(model, batch), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_padding_is_zero_and_masked(policy: torch.nn.Module, batch: PairBatch) -> None:
    values, mask = response_log_probs(policy, batch), packed_mask(batch)
    assert mask.shape == values.shape
    assert mask.sum(-1).equal(batch.lengths)
    assert values[~mask].eq(0).all()
    assert values[mask].lt(0).all()


@pytest.mark.fault("D33")
def test_ids_under_the_padding_do_not_matter(policy: torch.nn.Module, batch: PairBatch) -> None:
    garbage = replace(batch, input_ids=torch.where(batch.attention_mask, batch.input_ids, torch.tensor(7)))
    assert response_log_probs(policy, batch).equal(response_log_probs(policy, garbage))


def test_unscored_tokens_between_scored_ones_are_left_out(policy: torch.nn.Module, batch: PairBatch) -> None:
    """Several assistant turns: the values are those of the full response at the scored places."""
    mask = batch.mask.clone()
    mask[1, 0, 3] = False
    full, some = response_log_probs(policy, batch), response_log_probs(policy, replace(batch, mask=mask))
    torch.testing.assert_close(some[1, 0, :4], full[1, 0, [0, 2, 3, 4]])


def test_causality(policy: torch.nn.Module, batch: PairBatch) -> None:
    """A later token never moves an earlier value; an earlier one does."""
    later, earlier = batch.input_ids.clone(), batch.input_ids.clone()
    later[1, 0, 5] = 29
    earlier[1, 0, 1] = 29
    values = response_log_probs(policy, batch)
    torch.testing.assert_close(response_log_probs(policy, replace(batch, input_ids=later))[1, 0, :3], values[1, 0, :3])
    assert not response_log_probs(policy, replace(batch, input_ids=earlier))[1, 0, :3].isclose(values[1, 0, :3]).all()


def test_bfloat16_models_give_float32(batch: PairBatch) -> None:
    values = response_log_probs(tiny_llama().bfloat16(), batch)
    assert values.dtype == torch.float32


def test_gradient_reaches_every_weight(policy: torch.nn.Module, batch: PairBatch) -> None:
    response_log_probs(policy, batch).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_an_absent_side_does_not_run(policy: LlamaForCausalLM, batch: PairBatch) -> None:
    """The values of present rows do not depend on absent ones."""
    mask = batch.mask.clone()
    mask[0, 1] = mask[2, 0] = False
    ran: list[int] = []
    policy.register_forward_pre_hook(lambda _, __, inputs: ran.append(len(inputs["input_ids"])), with_kwargs=True)
    whole, half = response_log_probs(policy, batch), response_log_probs(policy, replace(batch, mask=mask))
    assert ran == [6, 4]
    there = mask.any(-1)
    torch.testing.assert_close(half[there], whole[there])
    assert not half[~there].any()
