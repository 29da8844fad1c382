"""Laws of averagings."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import pytest
import torch
from torch import Tensor

from lit_align.objectives import Averaging, LowConfidence
from lit_align.objectives.base import NO_NEEDS

from .cases import assert_same, gradient, lengths_to_mask, parts, random_pairs

Rule = Callable[..., Tensor]


def shape_is_kept(averaging: Rule) -> None:
    logps = random_pairs()
    assert averaging(logps.policy, logps.mask, logps.pair_seed).shape == logps.policy.shape[:2]
    assert averaging(logps.policy[:, :1], logps.mask[:, :1], logps.pair_seed).shape == (logps.policy.shape[0], 1)


def dtype_is_kept(averaging: Rule) -> None:
    for dtype in (torch.float32, torch.float64):
        logps = random_pairs(dtype=dtype)
        assert averaging(logps.policy, logps.mask, logps.pair_seed).dtype == dtype


def values_and_gradients_are_finite(averaging: Rule) -> None:
    for value in (-300.0, 300.0):
        values = torch.full((1, 2, 5), value, requires_grad=True)
        average = averaging(values, lengths_to_mask(torch.tensor([[1, 5]]), 5), torch.tensor([3]))
        assert average.isfinite().all()
        assert gradient(average, values).isfinite().all()


def padding_never_matters(averaging: Rule) -> None:
    logps = random_pairs()
    expected = averaging(logps.policy, logps.mask, logps.pair_seed)
    for garbage in (1e9, float("inf"), float("nan")):
        values = torch.where(logps.mask, logps.policy, garbage).requires_grad_()
        average = averaging(values, logps.mask, logps.pair_seed)
        assert_same(average, expected)
        slope = gradient(average, values)
        assert slope.isfinite().all()
        assert (slope[~logps.mask] == 0).all()


def padding_may_stand_anywhere(averaging: Rule) -> None:
    """Padding may come between scored tokens, whose order is kept."""
    logps = random_pairs()
    scattered, scored = torch.zeros(6, 2, 21), torch.zeros(6, 2, 21, dtype=torch.bool)
    scattered[..., 2::3], scored[..., 2::3] = logps.policy, logps.mask
    torch.testing.assert_close(
        averaging(scattered, scored, logps.pair_seed), averaging(logps.policy, logps.mask, logps.pair_seed)
    )


def is_linear(averaging: Rule) -> None:
    """Averaging is linear, so the averaged log-ratio is the difference of the averages of policy and reference."""
    logps = random_pairs(dtype=torch.float64)
    assert logps.reference is not None
    apart = averaging(logps.policy, logps.mask, logps.pair_seed) - 2 * averaging(
        logps.reference, logps.mask, logps.pair_seed
    )
    torch.testing.assert_close(averaging(logps.policy - 2 * logps.reference, logps.mask, logps.pair_seed), apart)


def pairs_are_independent(averaging: Rule) -> None:
    logps = random_pairs()
    whole = averaging(logps.policy, logps.mask, logps.pair_seed)
    for pair in range(len(whole)):
        one = slice(pair, pair + 1)
        assert_same(averaging(logps.policy[one], logps.mask[one], logps.pair_seed[one]), whole[one])


def sides_are_treated_alike(averaging: Rule) -> None:
    logps = random_pairs()
    assert_same(
        averaging(logps.policy.flip(1), logps.mask.flip(1), logps.pair_seed),
        averaging(logps.policy, logps.mask, logps.pair_seed).flip(1),
    )


def thousands_of_tokens_keep_their_digits(averaging: Rule) -> None:
    """The float32 result differs from the float64 result by rounding only."""
    values = -torch.rand(1, 2, 4096, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(values, dtype=torch.bool)
    pair_seed = torch.tensor([3])
    exact = averaging(values.double(), mask, pair_seed)
    torch.testing.assert_close(averaging(values, mask, pair_seed).double(), exact, rtol=1e-7, atol=0)


def needs_are_stated(averaging: Rule) -> None:
    """An averaging that needs a pair seed declares it, and any other ignores it."""
    logps = random_pairs()
    if getattr(averaging, "needs", NO_NEEDS).pair_seed:
        try:
            averaging(logps.policy, logps.mask, None)
        except ValueError as error:
            assert "pair_seed" in str(error)  # noqa: PT017 - a law also runs outside of a test
        else:
            raise AssertionError("says that it needs a pair seed, and runs without")
    else:
        assert_same(averaging(logps.policy, logps.mask, None), averaging(logps.policy, logps.mask, logps.pair_seed))


def a_glance_at_the_other_side_is_stated(averaging: Rule) -> None:
    logps = random_pairs()
    alone = averaging(logps.policy[:, :1], logps.mask[:, :1], logps.pair_seed)
    same = torch.equal(averaging(logps.policy, logps.mask, logps.pair_seed)[:, :1], alone)
    assert same is not getattr(averaging, "needs", NO_NEEDS).rejected


def the_power_of_the_length_is_stated(averaging: Rule) -> None:
    """The average of n ones is n^(1 - power) if both sides have the same length; None makes no claim."""
    power = getattr(averaging, "length_power", 1.0)
    for length in (1, 4, 9) if power is not None else ():
        ones = torch.ones(1, 2, length, dtype=torch.float64)
        found = averaging(ones, ones.bool(), torch.tensor([3]))
        expected = ones[..., 0] * length ** (1 - power)
        torch.testing.assert_close(found, expected)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum(-1)


LAWS: dict[Callable[[Rule], None], Rule] = {
    shape_is_kept: lambda values, mask, pair_seed: masked_sum(values, mask).sum(-1),
    dtype_is_kept: lambda values, mask, pair_seed: masked_sum(values, mask).float(),
    values_and_gradients_are_finite: lambda values, mask, pair_seed: masked_sum(values.exp(), mask).log(),
    padding_never_matters: lambda values, mask, pair_seed: (values * mask).sum(-1),
    padding_may_stand_anywhere: lambda values, mask, pair_seed: masked_sum(
        values, mask & (torch.arange(values.shape[-1]) < 7)
    ),
    is_linear: lambda values, mask, pair_seed: masked_sum(values, mask).abs(),
    pairs_are_independent: lambda values, mask, pair_seed: masked_sum(values, mask) - masked_sum(values, mask).mean(),
    sides_are_treated_alike: lambda values, mask, pair_seed: masked_sum(values, mask) * torch.tensor([1.0, 0.5]),
    thousands_of_tokens_keep_their_digits: lambda values, mask, pair_seed: reduce(torch.add, values.unbind(-1)),
    needs_are_stated: lambda values, mask, pair_seed: (
        masked_sum(values, mask) * (1 if pair_seed is None else pair_seed.sign()[:, None])
    ),
    a_glance_at_the_other_side_is_stated: lambda values, mask, pair_seed: masked_sum(values, mask).cumsum(-1).flip(-1),
    the_power_of_the_length_is_stated: lambda values, mask, pair_seed: masked_sum(values, mask),
}
"""Each law and an objective that violates it."""

EXCEPTIONS = {(is_linear, LowConfidence): "the values decide which tokens count"}
"""Where a published averaging does not keep a law, and why."""


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("averaging", parts(Averaging), ids=repr)
def test_law(averaging: Averaging, law: Callable[[Rule], None]) -> None:
    if (law, type(averaging)) in EXCEPTIONS:
        with pytest.raises(AssertionError):
            law(averaging)
    else:
        law(averaging)


@pytest.mark.parametrize(("law", "wrong"), LAWS.items(), ids=[law.__name__ for law in LAWS])
def test_law_can_fail(law: Callable[[Rule], None], wrong: Rule) -> None:
    with pytest.raises(AssertionError):
        law(wrong)
