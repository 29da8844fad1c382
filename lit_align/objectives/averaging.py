"""Averagings: from the values of a response's tokens to one number for the response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.base import NO_NEEDS, Needs, Part
from lit_align.objectives.pair_seed import sample_tokens
from lit_align.objectives.papers import AVERAGING, CONFPO, LD_DPO, SAMPO, Paper
from lit_align.types import PairMask, PairScores, PairSeed, PairTokens


class Averaging(Part, ABC):
    """How the values of a response's tokens become one number.

    What stands outside the mask never matters, be it NaN, neither for the value nor for the gradient. Sums run in
    float64 and come back in the dtype of the values: hundreds of float32 terms of like size lose digits that a
    difference of two responses needs.
    """

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What the averaging needs: a pair seed, or both sides; nothing unless a subclass overrides it."""
        return NO_NEEDS

    @property
    def length_power(self) -> float | None:
        """The power of a response's length that its sum is divided by, so that β can be judged; None if it is none."""
        return None

    @abstractmethod
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        """Return one number for each response.

        A response without scored tokens has no mean: parts that divide by the length give NaN for it (0 / 0) rather
        than an invented number, and a sum gives 0. Such rows are turned away where data is read.

        Args:
            values: a value per token.
            mask: true on scored tokens.
            pair_seed: a number per pair that decides which tokens are sampled, for averagings that sample.
        """


@dataclass(frozen=True)
class Sum(Averaging):
    """``Σ_t z_t``: every token counts once, so longer responses weigh more.

    The log-probability of a response is the sum over its tokens; DPO, arXiv:2305.18290.

    >>> values = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]])
    >>> mask = torch.tensor([[[True, True, False], [True, True, True]]])
    >>> Sum()(values, mask)
    tensor([[ 3., 12.]])
    """

    length_power: ClassVar[float] = 0.0  # the sum is not divided

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        return _exact_sum(values, mask).to(values.dtype)


@dataclass(frozen=True)
class Mean(Averaging):
    """``Σ_t z_t / n``: every response counts once, so length does not move the margin.

    Paper: Grinsztajn et al. 2024, arXiv:2406.19188: averaging the log-likelihoods is what composing the optimality
    operator of the regularised problem with a length-normalised policy comes to.

    >>> values = torch.tensor([[[1.0, 2.0, 9.0], [3.0, 4.0, 5.0]]])
    >>> mask = torch.tensor([[[True, True, False], [True, True, True]]])
    >>> Mean()(values, mask)
    tensor([[1.5000, 4.0000]])
    """

    source: ClassVar[Paper | None] = AVERAGING
    length_power: ClassVar[float] = 1.0  # the sum is divided by the length

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        return (_exact_sum(values, mask) / mask.sum(-1)).to(values.dtype)


@dataclass(frozen=True)
class LengthPower(Averaging):
    """``Σ_t z_t / n^power``: between `Sum` (power 0) and `Mean` (power 1).

    An interpolation of this package, without a paper.

    Args:
        power: exponent of the length, 0 to 1.

    >>> values, mask = torch.ones(1, 1, 4), torch.ones(1, 1, 4, dtype=torch.bool)
    >>> LengthPower(0.5)(values, mask)  # 4 / √4
    tensor([[2.]])
    """

    power: float
    ranges: ClassVar[Mapping[str, str]] = {"power": "[0, 1]"}

    @property
    def length_power(self) -> float:
        """``power``."""
        return self.power

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        lengths = mask.sum(-1, dtype=torch.float64)
        return (_exact_sum(values, mask) / lengths**self.power).to(values.dtype)


@dataclass(frozen=True)
class SharedLength(Averaging):
    """``Σ_{t ≤ s} z_t + weight Σ_{t > s} z_t``: what the longer side says beyond the shorter one counts less.

    s is the number of scored tokens of the shorter side, counted along the mask: scored tokens need not be
    contiguous. Weight 1 is `Sum`; weight 0 compares the two sides over the same number of tokens.

    Paper: LD-DPO, Liu et al. 2024, arXiv:2409.06411, where the weight is called α. Policy and reference are treated
    alike, because the average is taken of their difference.

    Args:
        weight: weight of the tokens beyond the shared length, 0 to 1.

    >>> values, mask = torch.ones(1, 2, 5), torch.arange(5) < torch.tensor([[[2], [5]]])
    >>> SharedLength(0.5)(values, mask)  # 2, and 2 + 0.5 · 3
    tensor([[2.0000, 3.5000]])
    """

    weight: float
    source: ClassVar[Paper | None] = LD_DPO
    needs: ClassVar[Needs] = Needs(rejected=True)
    length_power: ClassVar[float] = 0.0  # the weighted sum is not divided
    ranges: ClassVar[Mapping[str, str]] = {"weight": "[0, 1]"}

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        shared = mask.sum(-1).amin(-1)[:, None, None]
        within = mask.cumsum(-1) <= shared
        total = _exact_sum(values, mask & within) + self.weight * _exact_sum(values, mask & ~within)
        return total.to(values.dtype)


@dataclass(frozen=True)
class DownSampled(Averaging):
    """``Σ_{t ∈ S} z_t``: a sum over as many tokens of each side as the shorter one has, sampled without replacement.

    The shorter side keeps all its tokens and the longer one a random share, another one each time the pair is seen,
    so that length does not move the margin. Which tokens those are follows from ``pair_seed`` and the position in the
    response alone (`sample_tokens`): neither padding nor the split of a batch changes them, and
    policy and reference are sampled alike, because the average is taken of their difference.

    Paper: SamPO, Lu et al. 2024, arXiv:2406.10957.

    >>> values, mask = torch.ones(1, 2, 5), torch.arange(5) < torch.tensor([[[2], [5]]])
    >>> DownSampled()(values, mask, torch.tensor([1]))  # two of two, and two of five
    tensor([[2., 2.]])
    """

    source: ClassVar[Paper | None] = SAMPO
    needs: ClassVar[Needs] = Needs(rejected=True, pair_seed=True)
    length_power: ClassVar[float] = 0.0  # the sum is not divided

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        if pair_seed is None:
            raise ValueError(
                "DownSampled samples tokens, but PairLogProbs.pair_seed is None; "
                "expected a number for each pair, or an averaging that samples nothing"
            )
        return _exact_sum(values, sample_tokens(mask, mask.sum(-1).amin(-1), pair_seed)).to(values.dtype)


@dataclass(frozen=True)
class LowConfidence(Averaging):
    """``Σ_{t ∈ S} z_t / |S|``, S being the tokens whose ``e^z`` is below the response's mean of ``e^z``.

    With the policy's log-probabilities as values, as `Entropy` gives them, these are the tokens that the policy is
    less sure of than of the response on average; they carry most of the gradient. With log-ratios as values the
    tokens are chosen by their ratio, which is not the paper's method. Which tokens count passes no gradient. Where
    no token is below the mean, all of them count; the authors' code drops such a pair.

    Not linear: the average of a difference is not the difference of averages, so `RankedMargins` cannot take the
    reference's share out of it.

    Paper: ConfPO, Yoon et al. 2025, arXiv:2506.08712.

    >>> values = torch.tensor([[[0.9, 0.8, 0.1], [0.5, 0.5, 0.5]]]).log()
    >>> LowConfidence()(values, torch.ones(1, 2, 3, dtype=torch.bool)).exp()  # the mean is 0.6; all are alike
    tensor([[0.1000, 0.5000]])
    """

    source: ClassVar[Paper | None] = CONFPO
    length_power: ClassVar[float] = 1.0  # the sum is divided by the number of its terms

    @override
    def __call__(self, values: PairTokens, mask: PairMask, pair_seed: PairSeed | None = None) -> PairScores:
        exact = values.detach().double().masked_fill(~mask, -torch.inf)
        mean = exact.logsumexp(-1) - mask.sum(-1).log()
        below = mask & (exact < mean[..., None])
        counted = torch.where(below.any(-1, keepdim=True), below, mask)
        return (_exact_sum(values, counted) / counted.sum(-1)).to(values.dtype)


def _exact_sum(values: PairTokens, mask: PairMask) -> Float[Tensor, "pair side"]:
    """Sum in float64 over the scored tokens; ``where`` cuts the others off, also from the gradient."""
    return torch.where(mask, values, 0.0).sum(-1, dtype=torch.float64)
