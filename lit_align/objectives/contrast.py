"""A contrast is the rule from a pair's margin to its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional as F

from lit_align.objectives.papers import DPO, IPO, SLIC, Paper
from lit_align.objectives.ranges import check_range
from lit_align.types import Margin


class Contrast(ABC):
    """The loss of a pair as a function of its margin, and the only place where β is.

    Every contrast has a ``beta``, the inverse temperature in 1 / nats; rewards are reported as β × log-ratio.
    """

    source: ClassVar[Paper | None] = None
    beta: float

    @abstractmethod
    def __call__(self, margin: Margin) -> Margin:
        """The loss of each pair.

        Args:
            margin: refined margin, chosen minus rejected, in nats.
        """


@dataclass(frozen=True)
class Logistic(Contrast):
    """``-(1 - ε) log σ(β m) - ε log σ(-β m)``: the likelihood of the preferences under Bradley-Terry.

    Paper: DPO, Rafailov et al. 2023, arXiv:2305.18290, Eq. 7 (ε = 0); with ε > 0 conservative DPO, Mitchell 2023,
    whose optimum is the finite margin ``log((1 - ε) / ε) / β``.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of labels believed to be flipped, 0 ≤ ε < 0.5.

    >>> import torch
    >>> Logistic(beta=1.0)(torch.tensor([0.0]))  # log 2
    tensor([0.6931])
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    source: ClassVar[Paper | None] = DPO

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range(self, "beta", "(0, inf)")
        check_range(self, "label_smoothing", "[0, 0.5)")

    def __call__(self, margin: Margin) -> Margin:
        """See the base class."""
        logit = self.beta * margin
        return -(1 - self.label_smoothing) * F.logsigmoid(logit) - self.label_smoothing * F.logsigmoid(-logit)


@dataclass(frozen=True)
class Square(Contrast):
    """``(m - 1 / (2 β))²``: the margin is drawn to a target, from both sides.

    Paper: IPO, Azar et al. 2023, arXiv:2310.12036, Eq. 17, where β is called τ.

    Args:
        beta: inverse temperature, 1 / nats; the target is 1 / (2 beta) nats.

    >>> import torch
    >>> Square(beta=0.1)(torch.tensor([7.0]))  # (7 - 5)²
    tensor([4.])
    """

    beta: float = 0.1
    source: ClassVar[Paper | None] = IPO

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "beta", "(0, inf)")

    def __call__(self, margin: Margin) -> Margin:
        """See the base class."""
        return (margin - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class Hinge(Contrast):
    """``max(0, 1 - β m)``: a pair won by 1 / β nats is left alone.

    Paper: SLiC-HF, Zhao et al. 2023, arXiv:2305.10425; on log-ratios as here, RSO, Liu et al. 2023, arXiv:2309.06657.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> import torch
    >>> Hinge(beta=0.1)(torch.tensor([7.0, 12.0]))  # 1 - 0.7, and won
    tensor([0.3000, 0.0000])
    """

    beta: float = 0.1
    source: ClassVar[Paper | None] = SLIC

    def __post_init__(self) -> None:
        """Check the range."""
        check_range(self, "beta", "(0, inf)")

    def __call__(self, margin: Margin) -> Margin:
        """See the base class."""
        return F.relu(1 - self.beta * margin)
