"""Sampled responses end where they should and disturb nothing."""

from __future__ import annotations

import pytest
import torch

from lit_align.models.generation import Sampling, sample_responses
from tests.conftest import tiny_llama

PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11]]


def test_same_seed_same_responses_and_the_global_state_stays() -> None:
    model = tiny_llama()
    before = torch.get_rng_state()
    first = sample_responses(model, PROMPTS, [2], 0, Sampling(max_new_tokens=20))
    assert torch.get_rng_state().equal(before)
    assert first == sample_responses(model, PROMPTS, [2], 0, Sampling(max_new_tokens=20))
    assert first != sample_responses(model, PROMPTS, [2], 0, Sampling(max_new_tokens=20, seed=1))


def test_greedy_equals_a_plain_loop_without_padding() -> None:
    model = tiny_llama()
    for prompt, response in zip(
        PROMPTS, sample_responses(model, PROMPTS, [2], 0, Sampling(max_new_tokens=8, temperature=0.0)), strict=True
    ):
        ids = list(prompt)
        for _ in range(8):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
        assert response.ids == ids[len(prompt) :]


def test_samples_follow_the_model_s_distribution() -> None:
    """Frequencies of the first token over many draws: no top-k, no nucleus, no temperature slips in."""
    model = tiny_llama()
    draws = sample_responses(model, [PROMPTS[0]] * 20_000, [], 0, Sampling(max_new_tokens=1))
    counts = torch.bincount(torch.tensor([draw.ids[0] for draw in draws]), minlength=31)
    expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    spread = (expected * (1 - expected) / 20_000).sqrt()
    assert ((counts / 20_000 - expected).abs() / spread).max() < 4.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens"), ({"temperature": -1.0}, "temperature"), ({"top_p": 0.0}, "top_p")],
)
def test_ranges(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)  # type: ignore[arg-type]
