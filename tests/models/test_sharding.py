"""A gathered model computes what the unsharded one computes, for any number of calls per process."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from lit_align.models.adapters import LoRA
from lit_align.models.generation import sample_responses
from lit_align.models.sampling import Sampling
from lit_align.models.sharding import is_sharded, shard, unsharded
from tests.conftest import tiny_llama
from tests.runner import forked, in_processes, ok

IDS = torch.arange(2, 22).view(2, 10)


def test_a_model_that_is_not_sharded_stays_as_it_is(policy: LlamaForCausalLM) -> None:
    before = list(policy.parameters())
    with unsharded(policy), unsharded(policy):
        assert all(ours is theirs for ours, theirs in zip(before, policy.parameters(), strict=True))


@pytest.mark.partition("a model in two shards, gathered while processes call it unequally often")
@pytest.mark.parametrize("adapted", [False, True], ids=["model", "with an adapter"])
def test_processes_may_call_it_unequally_often(adapted: bool) -> None:
    """With layer-wise gathering, the process with more calls would hang; lengths of responses differ as well."""

    def work(rank: int) -> None:
        dist.init_process_group("gloo")
        model = tiny_llama()
        whole = copy.deepcopy(model)
        sharded = LoRA(rank=2).wrap(model) if adapted else model
        shard(sharded, init_device_mesh("cpu", (2,)))
        with unsharded(sharded), torch.no_grad():
            for _ in range(1 + 2 * rank):
                torch.testing.assert_close(sharded(input_ids=IDS).logits, whole(input_ids=IDS).logits)
            with unsharded(sharded):
                assert not is_sharded(sharded)
            for length in range(3, 5 + rank):
                request = (IDS[:1, :5].tolist(), [2], 0, Sampling(max_new_tokens=length))
                assert sample_responses(sharded, *request) == sample_responses(whole, *request)
        assert all(isinstance(weight, DTensor) for weight in sharded.parameters())
        sharded(input_ids=IDS).logits.sum().backward()
        trained = [weight for weight in sharded.parameters() if weight.requires_grad]
        assert trained
        assert all(isinstance(weight.grad, DTensor) for weight in trained)

    for ended in forked(in_processes(2, work)):
        ok(ended)
