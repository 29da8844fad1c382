"""Divergences: the measure of distance from the reference that the problem is regularised with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F
from typing_extensions import override

from lit_align.objectives.base import Part
from lit_align.objectives.papers import F_DPO, Paper
from lit_align.types import PairScores

LARGEST_EXPONENT = 36.0
"""Where exponentials turn into their tangent: e^36 ≈ 4e15, and the square of what follows still fits float32."""


class Divergence(Part, ABC):
    """From the log-ratio ``r = log u`` of a response to its score ``h(r) = f'(u)``, up to a constant.

    With an f-divergence in place of the reverse KL, the implicit reward of a response is ``β f'(π / π_ref)``. Every
    ``h`` increases, and its constant is chosen so that ``h(0) = 0``: a policy equal to the reference earns nothing.
    The constant cancels in the margin.

    Paper: f-DPO, Wang et al. 2023, arXiv:2309.16240.
    """

    source: ClassVar[Paper | None] = F_DPO

    @abstractmethod
    def __call__(self, log_ratio: PairScores) -> PairScores:
        """Return the score of each response.

        Args:
            log_ratio: log-ratio of each response, in nats.
        """


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """``r``: the log-ratio itself, as in DPO; ``f(u) = u log u``.

    >>> log_ratio = torch.tensor([[5.0, -2.0]])
    >>> ReverseKL()(log_ratio) is log_ratio
    True
    """

    source: ClassVar[Paper | None] = None

    @override
    def __call__(self, log_ratio: PairScores) -> PairScores:
        return log_ratio


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """``1 - e^{-r}``: losing probability costs exponentially, gaining it is worth at most 1; ``f(u) = -log u``.

    Beyond r = -36 the exponential continues along its tangent, so that values and gradients stay finite and the score
    still increases.

    >>> ForwardKL()(torch.tensor([[math.log(2.0), -math.log(2.0)]]))  # 1 - 1/2, 1 - 2
    tensor([[ 0.5000, -1.0000]])
    """

    @override
    def __call__(self, log_ratio: PairScores) -> PairScores:
        return -_expm1(-log_ratio)


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """``log σ(r) + log 2``: like the log-ratio where it is negative, at most log 2 where it is positive.

    ``f(u) = u log u - (u + 1) log((u + 1) / 2)``.

    >>> JensenShannon()(torch.tensor([[math.log(3.0), 0.0]]))  # log(2 · 3/4), log(2 · 1/2)
    tensor([[0.4055, 0.0000]])
    """

    @override
    def __call__(self, log_ratio: PairScores) -> PairScores:
        return F.logsigmoid(log_ratio) + math.log(2.0)


@dataclass(frozen=True)
class Alpha(Divergence):
    """``(1 - e^{-(1 - α) r}) / (1 - α)``: between `ForwardKL` (α → 0) and `ReverseKL` (α → 1).

    The paper counts from the other end, its α is 1 minus this one: ``f'(u) = (1 - u^{-α}) / α``. Beyond
    (1 - α) r = -36 the exponential continues along its tangent.

    Args:
        alpha: order of the divergence, 0 < alpha < 1.

    >>> Alpha(0.5)(torch.tensor([[math.log(4.0), -math.log(4.0)]]))  # (1 - 1/2) / (1/2), (1 - 2) / (1/2)
    tensor([[ 1., -2.]])
    """

    alpha: float
    ranges: ClassVar[Mapping[str, str]] = {"alpha": "(0, 1)"}

    @override
    def __call__(self, log_ratio: PairScores) -> PairScores:
        rate = 1 - self.alpha
        return -_expm1(-rate * log_ratio) / rate


def _expm1(exponent: PairScores) -> PairScores:
    """Return ``e^x - 1`` up to the largest exponent, then its tangent there; keeps the digits of a small x."""
    beyond = F.relu(exponent - LARGEST_EXPONENT)
    return torch.expm1(exponent.clamp(max=LARGEST_EXPONENT)) + math.exp(LARGEST_EXPONENT) * beyond
