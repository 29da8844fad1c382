"""An anchor is the score, in nats, that each response of a pair is judged against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lit_align.objectives.base import NO_NEEDS, Needs
from lit_align.objectives.papers import BCO, KTO, Paper
from lit_align.types import Margin, PairLogProbs, PairScores

_MEAN, _STEPS = "anchor", "steps"


class Anchor(ABC):
    """What counts as no reward: a pointwise loss sees ``score - anchor`` of both sides.

    An anchor passes no gradient. One that is made of the scores of a step's pairs says so (`Needs.batch_level`); one
    that is carried from step to step has running numbers, and a pair's loss then does not depend on the other pairs.
    """

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What must be there, and whether the other pairs matter; nothing unless a leaf says otherwise."""
        return NO_NEEDS

    @property
    def running(self) -> Mapping[str, float]:
        """Numbers that are carried from step to step, with their first values; none unless a leaf says otherwise."""
        return {}

    def observed(self, scores: PairScores, present: PairScores) -> Mapping[str, Margin]:
        """What each pair says of the running numbers; nothing unless a leaf says otherwise.

        Args:
            scores: score of each response, in nats.
            present: 1 for a response, 0 for an absent side.
        """
        return {}

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The running numbers after a step; as they were unless a leaf says otherwise. See `Objective.advance`."""
        return running

    @abstractmethod
    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        """The anchor of each pair, in nats, without gradient.

        Args:
            logps: log-probabilities of the batch.
            scores: the objective's own scores of both sides of a record.
        """


@dataclass(frozen=True)
class NoAnchor(Anchor):
    """``0``: a response is judged against the reference alone.

    >>> from lit_align.objectives.examples import worked_pair
    >>> NoAnchor()(worked_pair(), lambda logps: ...)
    tensor([0.])
    """

    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        """See the base class."""
        return logps.policy.new_zeros(logps.policy.shape[0])


@dataclass(frozen=True)
class MismatchedMean(Anchor):
    """``max(0, mean r(x_i, y_j))``: the mean score of responses that answer other prompts.

    Such responses say nothing of the prompt, so their mean log-ratio estimates from below how far the policy has
    moved from the reference; a response has to gain more than that to count as favoured. The mean is taken over all
    mismatched responses of an optimizer step, each counting once, and clamped at 0 as a divergence is.

    Paper: KTO, Ethayarajh et al. 2024, arXiv:2402.01306, the reference point z_0 as estimated there.

    Raises:
        ValueError: on a batch without ``mismatched``.

    >>> from dataclasses import replace
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = replace(worked_pair(), mismatched=worked_pair())
    >>> MismatchedMean()(pair, lambda logps: torch.tensor([[5.0, -2.0]]))  # (5 - 2) / 2
    tensor([1.5000])
    """

    source: ClassVar[Paper | None] = KTO
    needs: ClassVar[Needs] = Needs(mismatched=True, batch_level=True, unpaired=True)

    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        """See the base class."""
        if logps.mismatched is None:
            raise ValueError(
                "MismatchedMean needs the log-probabilities of responses to other prompts, "
                "but PairLogProbs.mismatched is None; expected mismatched pairs, or another anchor"
            )
        present = logps.mismatched.mask.any(-1)
        found = torch.where(present, scores(logps.mismatched).detach(), 0.0).double()
        mean = found.sum() / present.sum().clamp(min=1)
        return mean.clamp(min=0.0).to(logps.policy.dtype).expand(logps.policy.shape[0])


@dataclass(frozen=True)
class RunningMean(Anchor):
    """``δ``: the mean score of all responses of the earlier optimizer steps, each step counting once; 0 at first.

    Where the scores of both classes drift together, a classifier with its boundary at 0 would only learn the drift.
    The paper's shift is in rewards, this one in nats; they are the same, because a reward is β times a score.

    Paper: BCO, Jung et al. 2024, arXiv:2404.04656. TRL counts a step's own mean in before the step uses it;
    here a step uses the mean of the earlier ones, so that no pair's loss depends on another.

    >>> anchor = RunningMean()
    >>> step = {"anchor": torch.tensor(3.0)}
    >>> running = anchor.advance({"anchor": torch.tensor(1.0), "steps": torch.tensor(1.0)}, step)
    >>> running["anchor"], running["steps"]  # (1 + 3) / 2
    (tensor(2.), tensor(2.))
    """

    source: ClassVar[Paper | None] = BCO

    @property
    def running(self) -> Mapping[str, float]:
        """The mean in nats, and how many steps it is of."""
        return {_MEAN: 0.0, _STEPS: 0.0}

    def observed(self, scores: PairScores, present: PairScores) -> Mapping[str, Margin]:
        """The mean score of the sides that are there."""
        return {_MEAN: ((scores * present).sum(-1) / present.sum(-1).clamp(min=1)).detach()}

    def advance(self, running: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See the base class."""
        steps = running[_STEPS] + 1
        return {_MEAN: running[_MEAN] + (observed[_MEAN] - running[_MEAN]) / steps, _STEPS: steps}

    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        """See the base class."""
        mean = logps.running.get(_MEAN)
        first = logps.policy.new_tensor(self.running[_MEAN])
        return (first if mean is None else mean.to(first)).expand(logps.policy.shape[0])
