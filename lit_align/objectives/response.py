"""The response objective, which judges each response of a pair against an anchor, and the anchors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lit_align.objectives.averaging import Averaging, Sum
from lit_align.objectives.base import NO_NEEDS, PROBABILITY, Needs, Objective, Part, Scale
from lit_align.objectives.divergence import Divergence, ReverseKL
from lit_align.objectives.papers import BCO, KTO, Paper
from lit_align.objectives.pointwise import Pointwise
from lit_align.objectives.regularizer import KL, Regularizer
from lit_align.objectives.soft_labels import soft_labels
from lit_align.types import Margin, Outcome, PairLogProbs, PairScores

_MEAN, _STEPS = "anchor", "steps"


class Anchor(Part, ABC):
    """What counts as no reward: a pointwise loss sees ``score - anchor`` of both sides.

    An anchor passes no gradient. One that is made of the scores of a step's pairs says so (`Needs.batch_level`); one
    that is carried from step to step has a state, and a pair's loss then does not depend on the other pairs.
    """

    source: ClassVar[Paper | None] = None

    @property
    def needs(self) -> Needs:
        """What the anchor needs, and whether other pairs matter; nothing unless a subclass overrides it."""
        return NO_NEEDS

    @property
    def initial_state(self) -> Mapping[str, float]:
        """Numbers that are carried from step to step, with their first values; none unless a subclass overrides it."""
        return {}

    def observed(self, scores: PairScores, present: PairScores) -> Mapping[str, Margin]:
        """Return what each pair contributes to the state; nothing unless a subclass overrides it.

        Args:
            scores: score of each response, in nats.
            present: 1 for a response, 0 for an absent side.
        """
        return {}

    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state after a step; unchanged unless a subclass overrides it. See `Objective.advance_state`."""
        return state

    @abstractmethod
    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        """Return the anchor of each pair, in nats, without gradient.

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

    @override
    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
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

    @override
    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        if logps.mismatched is None:
            raise ValueError(
                "MismatchedMean needs the log-probabilities of responses to other prompts, "
                "but PairLogProbs.mismatched is None; expected mismatched pairs, or another anchor"
            )
        present = logps.mismatched.mask.any(-1)
        mismatched = torch.where(present, scores(logps.mismatched).detach(), 0.0).double()
        mean = mismatched.sum() / present.sum().clamp(min=1)
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
    >>> state = anchor.advance_state({"anchor": torch.tensor(1.0), "steps": torch.tensor(1.0)}, step)
    >>> state["anchor"], state["steps"]  # (1 + 3) / 2
    (tensor(2.), tensor(2.))
    """

    source: ClassVar[Paper | None] = BCO

    @property
    @override
    def initial_state(self) -> Mapping[str, float]:
        return {_MEAN: 0.0, _STEPS: 0.0}  # in nats, and over how many steps

    @override
    def observed(self, scores: PairScores, present: PairScores) -> Mapping[str, Margin]:
        return {_MEAN: ((scores * present).sum(-1) / present.sum(-1).clamp(min=1)).detach()}

    @override
    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        steps = state[_STEPS] + 1
        return {_MEAN: state[_MEAN] + (observed[_MEAN] - state[_MEAN]) / steps, _STEPS: steps}

    @override
    def __call__(self, logps: PairLogProbs, scores: Callable[[PairLogProbs], PairScores]) -> Margin:
        mean = logps.state.get(_MEAN)
        first = logps.policy.new_tensor(self.initial_state[_MEAN])
        return (first if mean is None else mean.to(first)).expand(logps.policy.shape[0])


@dataclass(frozen=True)
class ResponseObjective(Objective):
    """``Σ_side loss(r_w - a, r_l - a)`` with ``r = h(A[penalty])``: what `PreferenceObjective` is for margins.

    No margin is formed, so there is nothing to refine, and none is reported; rewards are reported as they are before
    the anchor is subtracted. A row may have one side only if the loss and the averaging judge sides by themselves: an
    absent side (without scored tokens) has reward 0 and adds no loss. The loss of a pair is the sum of its sides', so
    the mean loss over n pairs is twice the mean over the 2 n rows that they could be split into.

    A pair of preference probability p has p times its loss plus 1 - p times the loss with its sides exchanged.

    Args:
        loss: from the scores of both responses to their losses; holds β.
        averaging: from the values of tokens to one number per response.
        regularizer: the penalty per token, from the log-probabilities of policy and reference.
        divergence: from log-ratios to scores.
        anchor: the score that both responses are judged against.

    Raises:
        ValueError: when called without what a part needs.

    >>> from lit_align.objectives import BinaryLogistic, Mean
    >>> from lit_align.objectives.examples import worked_pair
    >>> averaged = ResponseObjective(BinaryLogistic(beta=2.0), averaging=Mean())
    >>> averaged(worked_pair()).loss  # -log σ(2 · 0.5) - log σ(2 · 0.05)
    tensor([0.9577])
    """

    loss: Pointwise
    averaging: Averaging = Sum()
    regularizer: Regularizer = KL()
    divergence: Divergence = ReverseKL()
    anchor: Anchor = NoAnchor()

    @property
    @override
    def needs(self) -> Needs:
        own = Needs(rejected=True, unpaired=True, columns=frozenset({PROBABILITY}))
        return own | self.loss.needs | self.regularizer.needs | self.averaging.needs | self.anchor.needs

    @property
    @override
    def initial_state(self) -> Mapping[str, float]:
        return self.anchor.initial_state

    @override
    def advance_state(self, state: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.anchor.advance_state(state, observed)

    @property
    @override
    def scales(self) -> tuple[Scale, ...]:
        power = self.averaging.length_power if self.loss.beta_sets_slope else None  # SPPO means its targets to be far
        return Scale.of(self.loss.beta, power)

    def log_ratio(self, logps: PairLogProbs) -> PairScores:
        """Return the score of each response, in nats: the implicit reward without β."""
        penalty = self.regularizer(logps.policy, logps.reference)
        return self.divergence(self.averaging(penalty, logps.mask, logps.pair_seed))

    @soft_labels
    @override
    def __call__(self, logps: PairLogProbs) -> Outcome:
        present = logps.mask.any(-1) if self.needs.unpaired else torch.ones_like(logps.mask[..., 0])
        log_ratio = torch.where(present, self.log_ratio(logps), 0.0)
        anchored = log_ratio - self.anchor(logps, self.log_ratio)[:, None]
        return Outcome(
            loss=torch.where(present, self.loss(anchored), 0.0).sum(-1),
            rewards=(self.loss.beta * log_ratio).detach(),
            observed=self.anchor.observed(log_ratio, present.to(log_ratio.dtype)),
        )
