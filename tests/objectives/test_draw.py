"""Draws depend on the pair, the step and the seed, and look like nothing."""

from __future__ import annotations

import torch

from lit_align.objectives.pair_seed import evaluation_pair_seed, training_pair_seed


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
