"""Random choices of tokens that follow from a seed per pair, not from a generator's state."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from lit_align.types import PairMask, PairSeed

_STEP = -0x61C8864680B583EB  # 2⁶⁴ / golden ratio, as a signed number
_FIRST = -0x40A7B892E31B1A47
_SECOND = -0x6B2FB644ECCEEE15
_LAST = torch.iinfo(torch.int64).max


def sample_tokens(mask: PairMask, count: Int[Tensor, " pair"], pair_seed: PairSeed) -> PairMask:
    """Sample ``count`` scored tokens of each response, uniformly and without replacement.

    Every token gets a number that is hashed from its pair's seed and its position among the scored tokens; those with
    the smallest numbers are sampled. So neither padding, nor the other pairs of the batch, nor the device matter.

    Args:
        mask: true on scored tokens.
        count: how many tokens to sample from each side of a pair; a response with no more than that keeps them all.
        pair_seed: a number per pair.

    >>> mask = torch.ones(1, 1, 6, dtype=torch.bool)
    >>> sample_tokens(mask, torch.tensor([2]), torch.tensor([7])).sum().item()
    2
    """
    positions = mask.cumsum(-1)
    keys = splitmix64(splitmix64(pair_seed.long())[:, None, None] + positions).masked_fill(~mask, _LAST)
    ranks = keys.argsort(dim=-1, stable=True).argsort(dim=-1)
    return mask & (ranks < count[:, None, None])


def splitmix64(numbers: Int[Tensor, "*numbers"]) -> Int[Tensor, "*numbers"]:
    """Hash each number to 64 bits as splitmix64 does (Steele, Lea and Flood 2014, "Fast splittable PRNGs").

    A bijection in integers that wrap around, the same on every device.

    >>> splitmix64(torch.tensor([0])).item() == 0xE220A8397B1DCDAF - 2**64  # the generator's first output from seed 0
    True
    """
    state = numbers + _STEP
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shifted right, with zeros from the left; torch's own shift repeats the sign."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)


def training_pair_seed(index: Int[Tensor, " pair"], step: int, seed: int) -> PairSeed:
    """Give a pair another seed each time it is seen, the same in any batch, process or resumed run.

    Args:
        index: position of each pair in its data set.
        step: the optimizer step that the pair goes into.
        seed: of the run.

    >>> import torch
    >>> one, other = training_pair_seed(torch.tensor([7, 7]), step=3, seed=0).tolist()
    >>> one == other, one == training_pair_seed(torch.tensor([7]), step=4, seed=0).item()
    (True, False)
    """
    return splitmix64(splitmix64(splitmix64(index.long()) + step) + seed)


def evaluation_pair_seed(index: Int[Tensor, " pair"]) -> PairSeed:
    """Give a pair the same seed whenever it is seen, so that two evaluations compare the same tokens.

    Args:
        index: position of each pair in its data set.
    """
    return splitmix64(index.long())
