"""Contrasts: from the margin of a pair to its loss."""

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
from lit_align.objectives.papers import DISCOPOP, DPO, EXO, IPO, ROBUST, SLIC, Paper
from lit_align.types import Margin


class Contrast(Part, ABC):
    """The loss of a pair as a function of its margin, and the only place where β is.

    Every contrast has a ``beta``, the inverse temperature in 1 / nats; rewards are reported as β × log-ratio.
    """

    source: ClassVar[Paper | None] = None
    beta: float

    @property
    def beta_sets_slope(self) -> bool:
        """Whether the slope at margin 0 grows with β; True unless β sets a target and a subclass says so."""
        return True

    @abstractmethod
    def __call__(self, margin: Margin) -> Margin:
        """Return the loss of each pair.

        Args:
            margin: refined margin, chosen minus rejected, in nats.
        """

    def slope(self, margin: Margin) -> Margin:
        """Return ``d loss / d margin`` of each pair, also where no gradient is recorded.

        Args:
            margin: refined margin, in nats.

        >>> Square(beta=0.5)(torch.tensor([-2.0])), Square(beta=0.5).slope(torch.tensor([-2.0]))  # (m - 1)²
        (tensor([9.]), tensor([-6.]))
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = margin.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self(leaf).sum(), leaf)
        return slope


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
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]", "label_smoothing": "[0, 0.5)"}

    @override
    def __call__(self, margin: Margin) -> Margin:
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
    beta_sets_slope: ClassVar[bool] = False  # β sets the target, and the slope at margin 0 is 1 / β
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, margin: Margin) -> Margin:
        return (margin - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class Hinge(Contrast):
    """``max(0, 1 - β m)``: the loss is 0 once a pair is won by 1 / β nats.

    Paper: SLiC-HF, Zhao et al. 2023, arXiv:2305.10425; on log-ratios as here, RSO, Liu et al. 2023, arXiv:2309.06657.

    Args:
        beta: inverse temperature, 1 / nats.

    >>> import torch
    >>> Hinge(beta=0.1)(torch.tensor([7.0, 12.0]))  # 1 - 0.7, and won
    tensor([0.3000, 0.0000])
    """

    beta: float = 0.1
    source: ClassVar[Paper | None] = SLIC
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]"}

    @override
    def __call__(self, margin: Margin) -> Margin:
        return F.relu(1 - self.beta * margin)


@dataclass(frozen=True)
class Robust(Contrast):
    """``-log σ(β m) - ε / (1 - 2 ε) β m``: what `Logistic` would be on clean labels, estimated from noisy ones.

    The paper writes it ``[-(1 - ε) log σ(β m) + ε log σ(-β m)] / (1 - 2 ε)``, which is the same. Averaged over labels
    of which a share ε is flipped it equals the logistic loss on the true ones; for a single pair it may be negative.

    Paper: Chowdhury et al. 2024, arXiv:2403.00409.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of flipped labels, 0 ≤ ε < 0.5.

    >>> Robust(beta=0.1, label_smoothing=0.1)(torch.tensor([7.0]))  # -log σ(0.7) - 0.1 / 0.8 · 0.7
    tensor([0.3157])
    """

    beta: float = 0.1
    label_smoothing: float = 0.1
    source: ClassVar[Paper | None] = ROBUST
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]", "label_smoothing": "[0, 0.5)"}

    @override
    def __call__(self, margin: Margin) -> Margin:
        logit = self.beta * margin
        return -F.logsigmoid(logit) - self.label_smoothing / (1 - 2 * self.label_smoothing) * logit


@dataclass(frozen=True)
class ReverseLogistic(Contrast):
    """``KL(p ‖ q)`` with ``p = (σ(β m), σ(-β m))`` and ``q = (1 - ε, ε)``: from the policy's preference to the label.

    `Logistic` is the divergence from the label to the policy's preference, up to a constant; this is the other way
    round, so the policy commits to one side instead of covering both. Its minimum is 0, at the finite margin
    ``log((1 - ε) / ε) / β``; the loss is not convex, and far below 0 its slope fades.

    Paper: EXO, Ji et al. 2024, arXiv:2402.00856, for pairs.

    Args:
        beta: inverse temperature, 1 / nats.
        label_smoothing: ε, the share of labels believed to be flipped, 0 < ε < 0.5; at 0 the loss would be infinite.

    >>> ReverseLogistic(beta=0.1, label_smoothing=0.25)(torch.tensor([0.0]))  # ½ log ⅔ + ½ log 2
    tensor([0.1438])
    """

    beta: float = 0.1
    label_smoothing: float = 1e-3
    source: ClassVar[Paper | None] = EXO
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]", "label_smoothing": "(0, 0.5)"}

    @override
    def __call__(self, margin: Margin) -> Margin:
        logit = self.beta * margin
        kept = torch.sigmoid(logit) * (F.logsigmoid(logit) - math.log1p(-self.label_smoothing))
        flipped = torch.sigmoid(-logit) * (F.logsigmoid(-logit) - math.log(self.label_smoothing))
        return kept + flipped


@dataclass(frozen=True)
class LogisticExponential(Contrast):
    """``-log σ(z) (1 - σ(z / τ)) + e^{-z} σ(z / τ)`` with z = β m: logistic for lost pairs, exponential for won ones.

    Not convex: with τ = 0.05 the slope is positive from z = -0.12 to z = 0.07, so that equal models are pushed into a
    local minimum, and it takes the noise of training to leave it.

    Paper: DiscoPOP, Lu et al. 2024, arXiv:2406.08414, the log-ratio modulated loss, Eq. 5, with τ = 0.05 and β = 0.05;
    the authors saw it fail for β of 0.01 and less, or 2.5 and more.

    Args:
        beta: inverse temperature, 1 / nats.
        temperature: τ, the width in logits of the passage from one to the other, 0 < τ ≤ 1; above 1 the exponential
            would win on the side that is lost.

    >>> LogisticExponential(beta=0.1)(torch.tensor([7.0, 0.0]))  # e^-0.7, (log 2 + 1) / 2
    tensor([0.4966, 0.8466])
    """

    beta: float = 0.05
    temperature: float = 0.05
    source: ClassVar[Paper | None] = DISCOPOP
    ranges: ClassVar[Mapping[str, str]] = {"beta": "(0, 1e6]", "temperature": "(0, 1]"}

    @override
    def __call__(self, margin: Margin) -> Margin:
        logit = self.beta * margin
        passage = logit / self.temperature
        exponential = torch.exp(F.logsigmoid(passage) - logit)  # in one exponent: e^{-z} alone overflows
        return exponential - torch.sigmoid(-passage) * F.logsigmoid(logit)
