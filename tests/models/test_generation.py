"""Responses depend on their own request only, follow the model's distribution, and stop at stop tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, RwkvConfig, RwkvForCausalLM

from lit_align.models.generation import CachedGenerator, GenerationRequest, prompt_batches, sample_responses
from lit_align.models.narrow import narrowed
from lit_align.models.sampling import Sampling, mix_seed, nucleus
from tests.conftest import tiny_llama

PROMPTS = [[1, 5, 6, 7], [1, 8], [1, 9, 10, 11, 12, 13], [1, 3]]
STOPS = {2}


def requests(salt: int = 0) -> list[GenerationRequest]:
    return [
        GenerationRequest(prompt, mix_seed(salt, row, number))
        for row, prompt in enumerate(PROMPTS)
        for number in range(3)
    ]


def write(batch_size: int, requested: list[GenerationRequest], **settings: float) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=8, **settings)  # type: ignore[arg-type]
    return [response.ids for response in CachedGenerator(batch_size)(tiny_llama(), requested, STOPS, 0, sampling)]


@pytest.mark.slow
def test_the_split_into_batches_changes_nothing() -> None:
    whole = write(64, requests())
    for size in (1, 2, 5):
        assert write(size, requests()) == whole


def test_neither_do_the_other_requests_nor_their_order() -> None:
    whole = write(64, requests())
    assert write(64, requests()[::-1]) == whole[::-1]
    assert write(64, requests()[4:7]) == whole[4:7]


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one = write(64, requests())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(4)
    assert write(64, requests()) == one


def test_other_seeds_give_other_responses() -> None:
    assert write(64, requests(1)) != write(64, requests(2))


def test_a_response_keeps_its_stop_token() -> None:
    sampling = Sampling(max_new_tokens=30, temperature=3.0)
    responses = CachedGenerator()(tiny_llama(), requests() * 3, STOPS, 0, sampling)
    assert any(response.ended for response in responses)
    for response in responses:
        assert 2 not in response.content
        assert response.ids[-1] == 2 if response.ended else len(response.ids) == 30


def test_first_tokens_follow_the_policy() -> None:
    """4,000 samples of one token: every frequency within five standard errors of its probability."""
    model = tiny_llama()
    count = 4000
    sampling = Sampling(max_new_tokens=1, temperature=0.7)
    requested = [GenerationRequest([1, 5, 6], mix_seed(7, number)) for number in range(count)]
    responses = CachedGenerator(1000)(model, requested, STOPS, 0, sampling)
    seen = torch.bincount(torch.tensor([response.ids[0] for response in responses]), minlength=31) / count
    with torch.no_grad():
        wanted = (model(torch.tensor([[1, 5, 6]])).logits[0, -1].double() / 0.7).softmax(-1)
    error = (wanted * (1 - wanted) / count).sqrt()
    assert float(((seen - wanted).abs() / error.clamp_min(1e-4)).max()) < 5
    with torch.no_grad():
        other = model(torch.tensor([[1, 5, 6]])).logits[0, -1].double().softmax(-1)
    assert float(((seen - other).abs() / error.clamp_min(1e-4)).max()) > 8


def test_temperature_zero_is_the_likeliest_token_each_time() -> None:
    model, ids = tiny_llama(), [1, 5, 6]
    (response,) = CachedGenerator()(
        model, [GenerationRequest(ids, 0)], STOPS, 0, Sampling(max_new_tokens=6, temperature=0.0)
    )
    with torch.no_grad():
        for token in response.ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids = [*ids, token]


def test_only_the_nucleus_is_sampled_from() -> None:
    model = tiny_llama()
    requested = [GenerationRequest([1, 5, 6], mix_seed(7, number)) for number in range(500)]
    responses = CachedGenerator(500)(model, requested, STOPS, 0, Sampling(max_new_tokens=1, top_p=0.5))
    with torch.no_grad():
        chances = model(torch.tensor([[1, 5, 6]])).logits[0, -1:].softmax(-1)
    inside = set(nucleus(chances, 0.5)[0].nonzero()[:, 0].tolist())
    assert 1 < len(inside) < 31
    assert {response.ids[0] for response in responses} == inside


def test_deterministic_algorithms_sample_the_same_without_float_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch refuses to sum up floating point numbers on CUDA then; here the test refuses it."""
    model, requests, right = tiny_llama(), [GenerationRequest([5, 6], seed) for seed in range(20)], torch.Tensor.cumsum
    sampling = Sampling(max_new_tokens=6, top_p=0.9)
    expected = CachedGenerator()(model, requests, {2}, 0, sampling)

    def strict(values: torch.Tensor, axis: int) -> torch.Tensor:
        assert not values.is_floating_point()
        return right(values, axis)

    monkeypatch.setattr(torch.Tensor, "cumsum", strict)
    torch.use_deterministic_algorithms(True)
    try:
        assert CachedGenerator()(model, requests, {2}, 0, sampling) == expected
    finally:
        torch.use_deterministic_algorithms(False)


PADDED = [[1, 5, 6], [1, 7, 8, 9, 10, 11]]


def test_sample_responses_depends_on_its_seed_and_keeps_the_global_state() -> None:
    model = tiny_llama()
    before = torch.get_rng_state()
    first = sample_responses(model, PADDED, [2], 0, Sampling(max_new_tokens=20))
    assert torch.get_rng_state().equal(before)
    assert first == sample_responses(model, PADDED, [2], 0, Sampling(max_new_tokens=20))
    assert first != sample_responses(model, PADDED, [2], 0, Sampling(max_new_tokens=20, seed=1))


def test_greedy_equals_a_loop_without_padding() -> None:
    model = tiny_llama()
    for prompt, response in zip(
        PADDED, sample_responses(model, PADDED, [2], 0, Sampling(max_new_tokens=8, temperature=0.0)), strict=True
    ):
        ids = list(prompt)
        for _ in range(8):
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
            if token == 2:
                break
            ids.append(token)
        assert response.content == ids[len(prompt) :]


@pytest.mark.slow
def test_sample_responses_follows_the_model_s_distribution() -> None:
    """Frequencies of the first token over many samples: no top-k, no nucleus, no temperature slips in."""
    model = tiny_llama()
    responses = sample_responses(model, [PADDED[0]] * 20_000, [], 0, Sampling(max_new_tokens=1))
    counts = torch.bincount(torch.tensor([response.ids[0] for response in responses]), minlength=31)
    expected = model(torch.tensor([PADDED[0]])).logits[0, -1].softmax(-1)
    spread = (expected * (1 - expected) / 20_000).sqrt()
    assert ((counts / 20_000 - expected).abs() / spread).max() < 4.5


# ── models that read padding, or their neighbours ───────────────────────────────────────────────────────────────────


def rwkv() -> torch.nn.Module:
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=31, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2, context_length=64
    )
    model = RwkvForCausalLM(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def mistral() -> torch.nn.Module:
    """A model whose attention sees four tokens."""
    config = MistralConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=4,
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    return model.eval()


class Neighbours(torch.nn.Module):
    """A model whose rows depend on the other rows of the batch."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + values.mean(0, keepdim=True)


def neighbours() -> torch.nn.Module:
    model = tiny_llama()
    model.lm_head = torch.nn.Sequential(model.lm_head, Neighbours())
    return model


@pytest.mark.parametrize(
    ("build", "together"), [(rwkv, "one by one"), (neighbours, "one by one"), (tiny_llama, "any lengths")]
)
def test_a_response_does_not_depend_on_its_neighbours(build: Callable[[], torch.nn.Module], together: str) -> None:
    prompts = [[1, 5], [1, 6, 7, 8, 9, 10], [1, 7], [1, 3, 4, 5, 6, 7, 8]]
    requests = [GenerationRequest(prompt, seed) for seed, prompt in enumerate(prompts)]
    sampling = Sampling(max_new_tokens=6)
    alone = [CachedGenerator(1)(build(), [request], {2}, 0, sampling)[0] for request in requests]
    model = build()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert CachedGenerator()(model, requests, {2}, 0, sampling) == alone
        assert CachedGenerator(2)(model, requests[::-1], {2}, 0, sampling) == alone[::-1]
    told = [str(warning.message) for warning in said if "depends on the prompts beside it" in str(warning.message)]
    assert len(told) == (together != "any lengths")
    assert all(together in line for line in told)
    sizes = sorted(map(len, prompt_batches(model, prompts, 64, 0, sampling)))
    assert sizes == {"any lengths": [4], "equal lengths": [1, 1, 2], "one by one": [1, 1, 1, 1]}[together]
    greedy = Sampling(max_new_tokens=6, temperature=0)
    each = [sample_responses(model, [prompt], {2}, 0, greedy)[0] for prompt in prompts]
    assert sample_responses(model, prompts, {2}, 0, greedy) == each


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_llama, mistral, rwkv])
def test_a_prompt_is_read_once_for_all_its_responses(build: Callable[[], torch.nn.Module]) -> None:
    """Models that keep more than keys and values read it for each response; the responses are the same in any case."""
    model, shapes, sampling = build(), [], Sampling(max_new_tokens=6)
    requested = requests()
    alone = [CachedGenerator(1)(model, [request], STOPS, 0, sampling)[0] for request in requested]
    prompt_batches(model, PROMPTS, 64, 0, sampling)  # looks once at what the model does with padding
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: shapes.append(inputs[0].shape))
    assert CachedGenerator()(model, requested, STOPS, 0, sampling) == alone
    if build is rwkv:
        assert {shape[0] for shape in shapes} == {1}
    else:
        assert [tuple(shape) for shape in shapes[:2]] == [(4, 5), (12, 1)]
        assert {tuple(shape) for shape in shapes[1:]} == {(12, 1)}


def test_keys_and_values_of_a_fixed_size_change_no_response() -> None:
    """Batches are filled up to one size, for which a device compiles the pass over a token."""
    seen: list[int] = []
    model = tiny_llama()
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    generator = CachedGenerator(8, static_cache=True)
    responses = generator(model, requests(), STOPS, 0, Sampling(max_new_tokens=8))
    assert [response.ids for response in responses] == write(8, requests())
    assert set(seen[-10:]) == {8}


def test_a_recurrent_model_has_none_to_fix() -> None:
    model = rwkv().eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        alike = [
            CachedGenerator(4, static_cache=static)(model, requests(), STOPS, 0, Sampling(max_new_tokens=5))
            for static in (False, True)
        ]
    assert alike[0] == alike[1]
    assert [str(each.message) for each in caught if "static" in str(each.message)] == [
        "rwkv: it takes no cache of keys and values, so static_cache has no effect"
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keys_and_values_of_a_fixed_size_take_autocast(attention: str) -> None:
    """Keys come in float32 and values in 16 bits there, from wide weights and from one narrow copy of them."""
    model, sampling = tiny_llama(), Sampling(max_new_tokens=8)
    model.set_attn_implementation(attention)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = CachedGenerator(8)(model, requests(), STOPS, 0, sampling)
        for context in (nullcontext(), narrowed(model)):
            with context:
                assert CachedGenerator(8, static_cache=True)(model, requests(), STOPS, 0, sampling) == expected
