"""A cut model that is put together gives what the whole one gives, however often each process asks it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from lit_align.models.generation import Sampling, sample_responses
from lit_align.models.loading import LoRA
from lit_align.models.sharding import build_whole, is_sharded, shard, together
from tests.conftest import tiny_llama
from tests.runner import forked, in_processes, ok

IDS = torch.arange(2, 22).view(2, 10)


def test_a_whole_model_is_left_alone(policy: LlamaForCausalLM) -> None:
    before = list(policy.parameters())
    with together(policy), together(policy):
        assert all(ours is theirs for ours, theirs in zip(before, policy.parameters(), strict=True))
    assert build_whole(lambda: policy) is policy


@pytest.mark.partition("a model in two parts, put together while processes ask it unequally often")
@pytest.mark.parametrize("adapted", [False, True], ids=["model", "with an adapter"])
def test_processes_may_ask_unequally_often(adapted: bool) -> None:
    """Layer by layer, the process that asks more often would wait for ever; ends of responses differ as well."""

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        model = tiny_llama()
        whole = copy.deepcopy(model)
        cut = LoRA(rank=2).wrap(model) if adapted else model
        shard(cut, init_device_mesh("cpu", (2,)))
        with together(cut), torch.no_grad():
            for _ in range(1 + 2 * rank):
                torch.testing.assert_close(cut(input_ids=IDS).logits, whole(input_ids=IDS).logits)
            with together(cut):
                assert not is_sharded(cut)
            for length in range(3, 5 + rank):
                asked = (IDS[:1, :5].tolist(), [2], 0, Sampling(max_new_tokens=length))
                assert sample_responses(cut, *asked) == sample_responses(whole, *asked)
        assert all(isinstance(weight, DTensor) for weight in cut.parameters())
        cut(input_ids=IDS).logits.sum().backward()
        trained = [weight for weight in cut.parameters() if weight.requires_grad]
        assert trained
        assert all(isinstance(weight.grad, DTensor) for weight in trained)

    for ended in forked(in_processes(2, work)):
        ok(ended)
