"""Heads of any kind, by autograd."""

from __future__ import annotations

import torch
from torch import nn

from lit_align.models.lm_head.patch import values_through
from lit_align.models.lm_head.projection import LogitRule, Workspace


def test_peaked_logits_of_a_large_vocabulary_are_not_biased() -> None:
    """A trained model's logits; ``log_softmax`` in float32 is off by 3e-5, and by 1e-5 in the mean."""
    made = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(50, 49_152, generator=made), torch.randint(49_152, (50,), generator=made)
    logits[torch.arange(50), torch.randint(49_152, (50,), generator=made)] = 20.0
    truth = logits.double().log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    values = values_through(nn.Identity(), LogitRule(), Workspace(), (logits, targets), collision=True)
    biased = logits.log_softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    assert float((biased - truth).abs().max()) > 1e-5
    assert float((values.log_probs - truth).abs().max()) < 4e-6
    assert values.collision is not None
    collision = (2 * logits.double()).logsumexp(-1) - 2 * logits.double().logsumexp(-1)
    assert float((values.collision - collision).abs().max()) < 1e-5
