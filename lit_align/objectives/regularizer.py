"""Regularizers: the penalty, in nats, of each token that the policy writes in the regularised RL problem."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.base import NO_NEEDS, Needs, Part
from lit_align.objectives.papers import HUMANLINE, PREFERENCE_MATCHING, Paper

TokenLogps: TypeAlias = Float[Tensor, "*batch token"]
"""A value per token, of pairs or of rollouts."""


class Regularizer(Part, ABC):
    """The penalty of each token; its sum over a response is the log-ratio that direct alignment calls implicit reward.

    The optimum of ``max E[r] - β E[Σ_t penalty_t]`` determines what an aligned policy is pulled towards, and the same
    penalty, solved for the reward, is what stands inside the contrast of a direct method.
    """

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What the regularizer needs; the reference unless a subclass overrides it."""
        return Needs(reference=True, unpaired=True)

    @property
    def matches_preferences(self) -> bool:
        """Whether the optimum is to be ``softmax(r)``, which depends on the absolute scale of r; True by default."""
        return True

    @property
    def uses_whole_support(self) -> bool:
        """Whether tokens that the reference finds impossible cost nothing; False unless a subclass overrides it."""
        return False

    @abstractmethod
    def __call__(self, policy: TokenLogps, reference: TokenLogps | None) -> TokenLogps:
        """Return the penalty of each token.

        Args:
            policy: log π(y_t | x, y_<t) under the policy, in nats.
            reference: the same under the reference; None where there is none.

        Raises:
            ValueError: the part needs the reference and there is none.
        """


@dataclass(frozen=True)
class KL(Regularizer):
    """``lp - ref``: a token is penalised for being likelier than under the reference.

    The optimum is ``π ∝ π_ref exp(r / β)``: whatever the reference prefers stays preferred.

    >>> KL()(torch.tensor([-0.5, -1.0]), torch.tensor([-1.5, -0.5]))
    tensor([ 1.0000, -0.5000])
    """

    matches_preferences: ClassVar[bool] = False

    @override
    def __call__(self, policy: TokenLogps, reference: TokenLogps | None) -> TokenLogps:
        return policy - _present(self, reference)


@dataclass(frozen=True)
class Entropy(Regularizer):
    """``lp``: a token is penalised for being likely, whatever the reference says; no reference is needed.

    The optimum is ``π ∝ exp(r / β)``: at β = 1 the policy matches the preferences that r stands for, instead of
    amplifying those that the reference already had. The same penalty makes a direct method reference-free.

    Paper: Xiao et al. 2024, arXiv:2405.16455, where it is the preference matching regularizer ``-log π``.

    >>> Entropy()(torch.tensor([-0.5, -1.0]), None)
    tensor([-0.5000, -1.0000])
    """

    source: ClassVar[Paper | None] = PREFERENCE_MATCHING
    needs: ClassVar[Needs] = NO_NEEDS
    uses_whole_support: ClassVar[bool] = True

    @override
    def __call__(self, policy: TokenLogps, reference: TokenLogps | None) -> TokenLogps:
        return policy


@dataclass(frozen=True)
class ConditionalMatching(Regularizer):
    """``lp - (0 if ref > log α else ref)``: the reference only speaks where it finds a token unlikely.

    Tokens in the reference's support (likelier than α) are penalised as by `Entropy`, the others as by `KL`, so
    preferences are matched without leaving the language. α → 1 is `KL`, α → 0 is `Entropy`.

    Paper: Xiao et al. 2024, arXiv:2405.16455, conditional preference matching, token by token as in the authors' code.
    Their flag α = 0 means "off", that is KL; here the three regularizers have three names, and 0 is refused.

    Args:
        alpha: probability above which the reference is ignored, 0 < alpha < 1. The comparison is strict and in
            float32, whatever the dtype of the log-probabilities.

    >>> policy = torch.tensor([0.5, 0.2, 0.05]).log()
    >>> reference = torch.tensor([0.4, 0.3, 0.02]).log()
    >>> ConditionalMatching(alpha=0.1)(policy, reference)  # log 0.5, log 0.2, log(0.05 / 0.02)
    tensor([-0.6931, -1.6094,  0.9163])
    """

    alpha: float
    source: ClassVar[Paper | None] = PREFERENCE_MATCHING
    ranges: ClassVar[Mapping[str, str]] = {"alpha": "(0, 1)"}

    @override
    def __call__(self, policy: TokenLogps, reference: TokenLogps | None) -> TokenLogps:
        known = _present(self, reference)
        supported = known.float() > math.log(self.alpha)
        return policy - torch.where(supported, 0.0, known)


@dataclass(frozen=True)
class ClampedKL(Regularizer):
    """``clamp(lp - ref, low, high)``: the log-ratio of a token counts between two limits, and beyond them not at all.

    A token whose log-ratio has left the limits gets no gradient any more, as in the clipping of PPO and GRPO.

    Paper: Humanline, Liu et al. 2025, arXiv:2509.24207, where the limits are log ε_P and log ε_R and the reference
    follows the policy every few steps (`MovingReference`).

    Args:
        low: the least log-ratio of a token that counts, in nats, 0 or less.
        high: the largest, 0 or more.

    >>> ClampedKL(-0.5, 1.5)(torch.tensor([-0.5, -3.0]), torch.tensor([-1.5, -0.5]))  # 1, and -2.5 cut off
    tensor([ 1.0000, -0.5000])
    """

    low: float = -1.5
    high: float = 1.5
    source: ClassVar[Paper | None] = HUMANLINE
    matches_preferences: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, str]] = {"low": "(-inf, 0]", "high": "[0, inf)"}

    @override
    def __call__(self, policy: TokenLogps, reference: TokenLogps | None) -> TokenLogps:
        return (policy - _present(self, reference)).clamp(self.low, self.high)


def _present(part: Regularizer, reference: TokenLogps | None) -> TokenLogps:
    if reference is None:
        name = type(part).__name__
        raise ValueError(f"{name} compares each token with the reference, but the log-probabilities hold no reference")
    return reference
