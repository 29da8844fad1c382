"""A response depends on its own request alone, and follows the distribution it is drawn from."""

from __future__ import annotations

import torch

from lit_align.models.generation import CachedGenerator, Request, Sampling, draw_of, nucleus
from tests.conftest import tiny_llama

PROMPTS = [[1, 5, 6, 7], [1, 8], [1, 9, 10, 11, 12, 13], [1, 3]]
ENDS = {2}


def requests(salt: int = 0) -> list[Request]:
    return [Request(prompt, draw_of(salt, row, number)) for row, prompt in enumerate(PROMPTS) for number in range(3)]


def write(batch_size: int, asked: list[Request], **settings: float) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=8, **settings)  # type: ignore[arg-type]
    return [one.ids for one in CachedGenerator(batch_size)(tiny_llama(), asked, ENDS, 0, sampling)]


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


def test_other_draws_give_other_responses() -> None:
    assert write(64, requests(1)) != write(64, requests(2))


def test_a_response_keeps_its_end_token() -> None:
    sampling = Sampling(max_new_tokens=30, temperature=3.0)
    found = CachedGenerator()(tiny_llama(), requests() * 3, ENDS, 0, sampling)
    ended = [one for one in found if one.ended]
    assert ended
    assert all(one.ids[-1] == 2 and 2 not in one.ids[:-1] for one in ended)
    assert all(len(one.ids) == 30 and 2 not in one.ids for one in found if not one.ended)


def test_first_tokens_follow_the_policy() -> None:
    """4,000 draws of one token: every frequency within five standard errors of its probability."""
    model = tiny_llama()
    count = 4000
    sampling = Sampling(max_new_tokens=1, temperature=0.7)
    asked = [Request([1, 5, 6], draw_of(7, number)) for number in range(count)]
    found = CachedGenerator(1000)(model, asked, ENDS, 0, sampling)
    seen = torch.bincount(torch.tensor([one.ids[0] for one in found]), minlength=31) / count
    with torch.no_grad():
        wanted = (model(torch.tensor([[1, 5, 6]])).logits[0, -1].double() / 0.7).softmax(-1)
    error = (wanted * (1 - wanted) / count).sqrt()
    assert float(((seen - wanted).abs() / error.clamp_min(1e-4)).max()) < 5
    with torch.no_grad():
        other = model(torch.tensor([[1, 5, 6]])).logits[0, -1].double().softmax(-1)
    assert float(((seen - other).abs() / error.clamp_min(1e-4)).max()) > 8


def test_temperature_zero_is_the_likeliest_token_each_time() -> None:
    model, ids = tiny_llama(), [1, 5, 6]
    (found,) = CachedGenerator()(model, [Request(ids, 0)], ENDS, 0, Sampling(max_new_tokens=6, temperature=0.0))
    with torch.no_grad():
        for token in found.ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids = [*ids, token]


def test_the_nucleus_alone_is_drawn_from() -> None:
    model = tiny_llama()
    asked = [Request([1, 5, 6], draw_of(7, number)) for number in range(500)]
    found = CachedGenerator(500)(model, asked, ENDS, 0, Sampling(max_new_tokens=1, top_p=0.5))
    with torch.no_grad():
        chances = model(torch.tensor([[1, 5, 6]])).logits[0, -1:].softmax(-1)
    inside = set(nucleus(chances, 0.5)[0].nonzero()[:, 0].tolist())
    assert 1 < len(inside) < 31
    assert {one.ids[0] for one in found} == inside


def test_draws_of_neighbouring_numbers_differ() -> None:
    numbers = [draw_of(seed, row, number) for seed in range(10) for row in range(20) for number in range(5)]
    assert len(set(numbers)) == 1000
