from __future__ import annotations

import copy
import math

import pytest
import torch

from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.policy_measures import policy_rows


@torch.no_grad()
def by_hand(model: torch.nn.Module, reference: torch.nn.Module, prompt: list[int], response: list[int]) -> list[float]:
    """Entropy, log-probability and divergence, a token at a time with sums over the vocabulary."""
    entropies, log_prob, kl = [], 0.0, 0.0
    for place in range(len(response)):
        ids = torch.tensor([[*prompt, *response[:place]]])
        p, q = (each(input_ids=ids).logits[0, -1].softmax(-1).tolist() for each in (model, reference))
        entropies.append(-sum(a * math.log(a) for a in p if a > 0))
        kl += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        log_prob += math.log(p[response[place]])
    return [sum(entropies) / len(entropies), log_prob, kl]


def test_entropy_and_divergence_are_the_sums_over_the_vocabulary(testbed_model: LoadedModel) -> None:
    model = testbed_model.model
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    sequences = [([5, 6, 7], [8, 9, 10, 11]), ([20], [21, 22]), ([3, 4, 5, 6, 7, 8], [9])]
    rows = policy_rows(model, reference, sequences, batch_size=2)
    for row, (prompt, response) in zip(rows, sequences, strict=True):
        assert [row.entropy, row.log_prob, row.kl] == pytest.approx(by_hand(model, reference, prompt, response))
        assert row.kl is not None
        assert row.kl > 0.01


def test_a_model_has_no_divergence_from_itself(testbed_model: LoadedModel) -> None:
    (row,) = policy_rows(testbed_model.model, testbed_model.model, [([5], [6, 7])])
    assert row.kl == 0
    assert policy_rows(testbed_model.model, None, [([5], [6, 7])])[0].kl is None
