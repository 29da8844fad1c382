from __future__ import annotations

import pytest
import torch

from lit_align.objectives.pair_seed import evaluation_pair_seed, sample_tokens, splitmix64, training_pair_seed


def reference_hash(seed: int) -> int:
    """The published generator's step, in Python's integers."""
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("number", [0, 1, -1, 2**63 - 1, -(2**63), 123456789, -987654321])
def test_the_hash_is_splitmix64(number: int) -> None:
    assert splitmix64(torch.tensor([number])).item() % 2**64 == reference_hash(number % 2**64)


def test_every_token_is_drawn_as_often_as_any_other() -> None:
    """3 of 10, over 20000 pairs: each 0.3 of the time, within five standard errors; two of them 1 / 15 of it."""
    mask = torch.ones(20000, 1, 10, dtype=torch.bool)
    drawn = sample_tokens(mask, torch.full((20000,), 3), torch.arange(20000))[:, 0].double()
    assert (drawn.sum(-1) == 3).all()
    assert (drawn.mean(0) - 0.3).abs().max() < 5 * 0.0033
    together = (drawn.T @ drawn / 20000)[~torch.eye(10, dtype=torch.bool)]
    assert (together - 1 / 15).abs().max() < 5 * 0.0018


def test_neither_padding_nor_other_pairs_nor_the_mask_s_gaps_matter() -> None:
    mask = torch.tensor([[[True] * 6, [True] * 6], [[True] * 6, [True] * 2 + [False] * 4]])
    count, pair_seed = torch.tensor([3, 2]), torch.tensor([11, -5])
    drawn = sample_tokens(mask, count, pair_seed)
    assert torch.equal(sample_tokens(mask[1:], count[1:], pair_seed[1:]), drawn[1:])
    wide = torch.zeros(2, 2, 13, dtype=torch.bool)
    wide[..., 1::2] = mask
    assert torch.equal(sample_tokens(wide, count, pair_seed)[..., 1::2], drawn)
    assert not (drawn & ~mask).any()


def test_another_number_is_another_draw() -> None:
    mask, count = torch.ones(2, 1, 40, dtype=torch.bool), torch.tensor([20, 20])
    one, other = sample_tokens(mask, count, torch.tensor([1, 2]))
    assert not torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_draw_on_another_device() -> None:
    mask, count, pair_seed = torch.ones(64, 2, 100, dtype=torch.bool), torch.full((64,), 30), torch.arange(64) - 32
    there = sample_tokens(mask.cuda(), count.cuda(), pair_seed.cuda())
    assert torch.equal(there.cpu(), sample_tokens(mask, count, pair_seed))


def test_the_finalizer_is_splitmix64_s() -> None:
    """First output of the published generator from seed 0."""
    assert evaluation_pair_seed(torch.tensor([0])).item() % 2**64 == 0xE220A8397B1DCDAF


def test_a_batch_s_layout_changes_nothing() -> None:
    index = torch.tensor([5, 0, 123456789, 7])
    whole = training_pair_seed(index, step=3, seed=1)
    assert torch.equal(whole[2:], training_pair_seed(index[2:], step=3, seed=1))
    assert torch.equal(evaluation_pair_seed(index).flip(0), evaluation_pair_seed(index.flip(0)))


def test_pair_step_and_seed_all_change_it() -> None:
    index = torch.arange(200)
    found = torch.cat([training_pair_seed(index, step, seed) for step in range(10) for seed in range(5)])
    assert len(found.unique()) == len(found)


def test_every_bit_is_as_often_one_as_zero() -> None:
    found = training_pair_seed(torch.arange(4000), step=1, seed=0)
    shares = torch.stack([((found >> bit) & 1).double().mean() for bit in range(64)])
    assert float((shares - 0.5).abs().max()) < 0.05
