"""A mixture of policy and reference, compared with one that reads both models anew for every token."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_align.models import AdapterOff, LoRA, SecondModel, load_causal_lm, load_policy
from lit_align.models.generation import CachedGenerator, GenerationRequest
from lit_align.models.loading import Loading
from lit_align.models.mixture import MixtureGenerator
from lit_align.models.reference.base import Reference
from lit_align.models.sampling import Sampling, uniform_numbers

POLICY, STOP, PAD = "testbed:policy", 2, 0
REQUESTS = [GenerationRequest(prompt, seed) for seed, prompt in enumerate([[5, 6, 7], [9, 8, 7, 6, 5], [5, 6, 7]])]
SAMPLING = Sampling(max_new_tokens=4, temperature=0.8)


def shaken(model: nn.Module) -> nn.Module:
    """Move the trainable weights, so that the policy is not its reference."""
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


@torch.no_grad()
def anew(policy: nn.Module, reference: Reference, share: float, request: GenerationRequest) -> list[int]:
    numbers, ids = uniform_numbers([request.seed], SAMPLING.max_new_tokens)[0], list(request.prompt)
    for number in numbers:
        own = policy(input_ids=torch.tensor([ids])).logits[0, -1].double()
        with reference.active() as model:
            other = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        mixed = own.log_softmax(-1) * (1 - share) + other.log_softmax(-1) * share
        cumulative = (mixed / SAMPLING.temperature).softmax(-1).cumsum(-1)
        ids.append(int((cumulative < number * cumulative[-1]).sum()))
        if ids[-1] == STOP:
            break
    return ids[len(request.prompt) :]


@pytest.mark.parametrize("adapter", [pytest.param(False, marks=pytest.mark.long), True], ids=["copy", "adapter off"])
def test_a_mixture_is_that_of_the_logits(adapter: bool) -> None:
    """Prompts of unequal lengths, one of them twice, so that padding and both caches matter."""
    policy = load_policy(POLICY, Loading(), LoRA(rank=2)) if adapter else load_causal_lm(POLICY, Loading())
    reference: Reference = AdapterOff() if adapter else SecondModel()
    reference.attach(policy)
    shaken(policy)
    generate = MixtureGenerator(reference=reference, share=0.4)
    mixed = [response.ids for response in generate(policy, REQUESTS, {STOP}, PAD, SAMPLING)]
    assert mixed == [anew(policy, reference, 0.4, request) for request in REQUESTS]
    assert [response.ids for response in CachedGenerator()(policy, REQUESTS, {STOP}, PAD, SAMPLING)] != mixed
    with reference.active() as model:
        assert [r.ids for r in CachedGenerator()(model, REQUESTS, {STOP}, PAD, SAMPLING)] != mixed
