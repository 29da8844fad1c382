"""Refinements: the offset, in nats, that the margin of a pair has to exceed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar

from torch.nn import functional as F
from typing_extensions import override

from lit_align.objectives.base import NO_NEEDS, Needs, Part
from lit_align.objectives.papers import DPO_POSITIVE, DPO_SHIFT, R_DPO, SELF_REFINEMENT, SIMPO, Paper
from lit_align.types import Margin, PairLogProbs, PairScores


class Refinement(Part, ABC):
    """How far a margin must go before its pair counts as won; the contrast sees ``margin - offset``.

    As a rule the offset is a target, not something to optimise, and passes no gradient: who asks for it cuts it off
    (`offset_of`), unless the subclass says that the gradient belongs to its method.
    """

    source: ClassVar[Paper | None] = None

    @property
    def carries_gradient(self) -> bool:
        """Whether the offset is optimised along with the margin; False unless a subclass overrides it."""
        return False

    @property
    def needs(self) -> Needs:
        """What the refinement needs; nothing unless a subclass overrides it."""
        return NO_NEEDS

    @abstractmethod
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        """Return the offset of each pair, in nats.

        Args:
            logps: log-probabilities of the batch.
            log_ratio: the objective's own scores of both sides, for offsets that are made of them; asking twice about
                the same record costs nothing.
        """


def offset_of(refinement: Refinement, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
    """Return the offset of each pair, detached unless the refinement carries its gradient."""
    offset = refinement(logps, log_ratio)
    return offset if refinement.carries_gradient else offset.detach()


@dataclass(frozen=True)
class NoRefinement(Refinement):
    """``0``: the margin itself is judged.

    >>> from lit_align.objectives.examples import worked_pair
    >>> NoRefinement()(worked_pair(), lambda logps: ...)
    tensor([0.])
    """

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        return logps.policy.new_zeros(logps.policy.shape[0])


@dataclass(frozen=True)
class TargetMargin(Refinement):
    """``target``: every pair has to be won by the same margin.

    Paper: SimPO, Meng et al. 2024, arXiv:2405.14734, whose γ stands inside the sigmoid: target = γ / β.

    Args:
        target: the margin to exceed, in nats, 0 or more.

    >>> from lit_align.objectives.examples import worked_pair
    >>> TargetMargin(0.5)(worked_pair(), lambda logps: ...)
    tensor([0.5000])
    """

    target: float
    source: ClassVar[Paper | None] = SIMPO
    ranges: ClassVar[Mapping[str, str]] = {"target": "[0, inf)"}

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        return logps.policy.new_full((logps.policy.shape[0],), self.target)


@dataclass(frozen=True)
class LengthGap(Refinement):
    """``strength (n_l - n_w)``: a chosen response that is longer has less left to win.

    Length explains part of the preference, so the policy need not: solving ``max E[r - α |y|] - β KL`` for the reward
    gives ``r = β log-ratio + α |y|``, whose margin stands inside the sigmoid as ``β m + α (n_w - n_l)``.

    Paper: R-DPO, Park et al. 2024, arXiv:2403.19159; strength = α / β.

    Args:
        strength: nats per token of difference in length, 0 or more.

    >>> from lit_align.objectives.examples import worked_pair
    >>> LengthGap(0.1)(worked_pair(), lambda logps: ...)  # 0.1 · (40 - 10)
    tensor([3.])
    """

    strength: float
    source: ClassVar[Paper | None] = R_DPO
    ranges: ClassVar[Mapping[str, str]] = {"strength": "[0, inf)"}

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        lengths = logps.lengths
        return self.strength * (lengths[:, 1] - lengths[:, 0])


@dataclass(frozen=True)
class SelfRefine(Refinement):
    """``strength · sg[m_p]``: a pair that the prompted model tells apart has to be won by more.

    m_p is the margin of the very same responses under p ⊕ x, where p asks for a response of high quality: what the
    model already knows about the pair becomes the target of its training. Nothing is differentiated through m_p.

    Paper: Yu et al. 2024, arXiv:2405.21040. Their refinement function is ``Δ = β m_p`` and stands next to ``β m`` in
    Sr-DPO (strength = λ) but next to ``m`` in Sr-IPO as printed (strength = λ β).

    Args:
        strength: λ, the share of the prompted margin that is asked for, 0 or more.

    Raises:
        ValueError: on a batch without ``prompted``.

    >>> from lit_align.objectives.examples import worked_pair
    >>> import torch
    >>> SelfRefine(0.5)(worked_pair(), lambda logps: torch.tensor([[3.0, 0.0]]))
    tensor([1.5000])
    """

    strength: float
    source: ClassVar[Paper | None] = SELF_REFINEMENT
    needs: ClassVar[Needs] = Needs(prompted=True, unpaired=True)
    ranges: ClassVar[Mapping[str, str]] = {"strength": "[0, inf)"}

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        if logps.prompted is None:
            raise ValueError(
                "SelfRefine needs the log-probabilities of the responses under the quality prompt (p ⊕ x), "
                "but PairLogProbs.prompted is None; prepare the data with a quality prompt, or choose NoRefinement"
            )
        chosen, rejected = log_ratio(logps.prompted).detach().unbind(-1)
        return self.strength * (chosen - rejected)


@dataclass(frozen=True)
class LostLikelihood(Refinement):
    """``strength max(0, -r_w)``: a chosen response that fell below the reference has that much more to win.

    A margin grows as well when both sides lose likelihood, the rejected one more; here that no longer pays. The
    offset is not a target but a penalty that the policy can lower, so it carries the gradient. It is a refinement all
    the same, and not a part before the margin: it is in nats, per pair, subtracted inside the contrast, and reported
    as the offset.

    Paper: DPO-Positive, Pal et al. 2024, arXiv:2402.13228.

    Args:
        strength: λ, how many nats a lost nat costs, 0 or more.

    >>> from lit_align.objectives.examples import worked_pair
    >>> import torch
    >>> LostLikelihood(50.0)(worked_pair(), lambda logps: torch.tensor([[-2.0, -9.0]]))  # 50 · 2
    tensor([100.])
    """

    strength: float
    source: ClassVar[Paper | None] = DPO_POSITIVE
    carries_gradient: ClassVar[bool] = True  # what was lost is to be won back
    ranges: ClassVar[Mapping[str, str]] = {"strength": "[0, inf)"}

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        return self.strength * F.relu(-log_ratio(logps)[:, 0])


@dataclass(frozen=True)
class RejectedShare(Refinement):
    """``-strength r_l``: the rejected response counts less in the margin, which becomes ``r_w - (1 - strength) r_l``.

    A margin grows most easily by lowering the rejected response, which often lowers the chosen one as well; where it
    counts less, raising the chosen one pays more. Like `LostLikelihood` it is optimised along with the margin.

    Paper: DPO-Shift, Yang et al. 2025, arXiv:2502.07599; strength = 1 - f(λ).

    Args:
        strength: the share of the rejected log-ratio that is left out, in [0, 1).

    >>> from lit_align.objectives.examples import worked_pair
    >>> import torch
    >>> RejectedShare(0.25)(worked_pair(), lambda logps: torch.tensor([[5.0, -2.0]]))  # 0.25 · 2
    tensor([0.5000])
    """

    strength: float
    source: ClassVar[Paper | None] = DPO_SHIFT
    carries_gradient: ClassVar[bool] = True  # it is a part of the margin
    ranges: ClassVar[Mapping[str, str]] = {"strength": "[0, 1)"}

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        return -self.strength * log_ratio(logps)[:, 1]


@dataclass(frozen=True)
class SumOf(Refinement):
    """``Σ_i offset_i``: several refinements at once; of none it is `NoRefinement`.

    Args:
        parts: the refinements that are added; each keeps its own rule about the gradient.

    >>> from lit_align.objectives.examples import worked_pair
    >>> SumOf((TargetMargin(0.5), LengthGap(0.1)))(worked_pair(), lambda logps: ...)  # 0.5 + 3
    tensor([3.5000])
    """

    parts: tuple[Refinement, ...]

    @property
    @override
    def needs(self) -> Needs:
        return reduce(or_, (part.needs for part in self.parts), NO_NEEDS)

    @property
    @override
    def carries_gradient(self) -> bool:
        return any(part.carries_gradient for part in self.parts)

    @override
    def __call__(self, logps: PairLogProbs, log_ratio: Callable[[PairLogProbs], PairScores]) -> Margin:
        offsets = (offset_of(part, logps, log_ratio) for part in self.parts)
        return sum(offsets, start=NoRefinement()(logps, log_ratio))
