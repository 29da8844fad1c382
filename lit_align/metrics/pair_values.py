"""Values of pairs and responses by the names under which their means are reported, and where each counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor

from lit_align.types import Margin, Outcome, PairBatch, PairLogProbs, PairTokens

SIDES = ("chosen", "rejected")
BUCKETS = ("much_shorter", "shorter", "similar", "longer", "much_longer")
"""The chosen response beside the rejected one: at most half as long, shorter, the shorter of the two at least 90 % of
the longer, longer, at least twice as long."""
QUARTERS = ("shortest", "short", "long", "longest")
"""Quarters of the responses of the training data, by their scored tokens."""
SATURATED = 1e-6
"""A pair whose loss moves less than this per nat teaches nothing any more, however wrong it may be."""
PAIR_METRICS = (
    "loss",
    *(f"rewards/{name}" for name in (*SIDES, "margins", "accuracies")),
    *(f"margin/{name}" for name in ("plain", "offset", "refined", "prompted", "prompted_accuracy", "saturated")),
    *(f"log_probs/{side}/{scale}" for side in SIDES for scale in ("sum", "mean")),
    *(f"lengths/{name}" for name in (*SIDES, "gap", "truncated")),
    *(f"margin/{name}" for name in ("by_sum", "by_mean", "signs_differ")),
    *(f"displacement/{side}/{change}" for side in SIDES for change in ("sum", "mean", "fell")),
    "lengths/longer_wins",
    *(f"lengths/chosen_is/{name}" for name in BUCKETS),
    *(f"rewards/accuracies/chosen_{name}" for name in BUCKETS),
    *(f"gradient/{name}" for name in (*SIDES, *(f"{quarter}_quarter" for quarter in QUARTERS))),
)


SHARE = re.compile(
    r"rewards/accuracies.*|margin/(prompted_accuracy|saturated|signs_differ)|displacement/\w+/fell"
    r"|lengths/(truncated|longer_wins|chosen_is/\w+)"
)
"""Names of the metrics that are shares of pairs or responses."""


@lru_cache(maxsize=256)
def on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor on a device, moved there once: moving them at every batch would wait each time."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


@dataclass(frozen=True)
class Counted:
    """Values, ``[pair]`` or ``[pair, side]``, and true where they count; what stands elsewhere does not matter."""

    value: Tensor
    counts: Tensor


NamedValues: TypeAlias = dict[str, Counted]
"""Name to values."""


@dataclass(frozen=True)
class Presence:
    """Which responses of a batch are present: unpaired rows have one side only.

    Args:
        sides: true for a response with scored tokens, ``[pair, side]``.
    """

    sides: Tensor

    @classmethod
    def of(cls, logps: PairLogProbs) -> Presence:
        """Return which responses have scored tokens."""
        return cls(logps.mask.any(-1))

    @property
    def pairs(self) -> Tensor:
        """Every pair."""
        return torch.ones_like(self.sides[:, 0])

    @property
    def both(self) -> Tensor:
        """The pairs whose responses can be compared."""
        return self.sides.all(-1) & (self.sides.shape[1] == 2)


def of_outcome(outcome: Outcome, present: Presence, slope: Margin | None = None) -> NamedValues:
    """Return losses and their terms of every pair, rewards of every response, margins where there are two responses.

    Args:
        outcome: what was optimised.
        present: which responses are present.
        slope: ``Objective.slope`` of the pairs; None where there is no margin.
    """
    losses = {"loss": outcome.loss, **{f"loss/{name}": loss for name, loss in outcome.terms.items()}}
    return {
        **{name: Counted(loss, present.pairs) for name, loss in losses.items()},
        **_rewards(outcome, present),
        **_margins(outcome, present, slope),
    }


def _rewards(outcome: Outcome, present: Presence) -> NamedValues:
    values = {
        f"rewards/{name}": Counted(outcome.rewards[:, side], present.sides[:, side])
        for side, name in enumerate(SIDES[: outcome.rewards.shape[1]])
    }
    if outcome.rewards.shape[1] == 2:
        gap = outcome.rewards[:, 0] - outcome.rewards[:, 1]
        values["rewards/margins"] = Counted(gap, present.both)
        values["rewards/accuracies"] = Counted(_won(gap), present.both)
    return values


def _won(gap: Tensor) -> Tensor:
    """Return 1 where chosen is ahead, and one half at a tie."""
    return (gap > 0).double() + 0.5 * (gap == 0).double()


def _margins(outcome: Outcome, present: Presence, slope: Margin | None) -> NamedValues:
    margins = {
        "margin/plain": outcome.margin,
        "margin/offset": outcome.offset,
        "margin/prompted": outcome.prompted_margin,
        "margin/prompted_accuracy": None if outcome.prompted_margin is None else _won(outcome.prompted_margin),
        "margin/saturated": None if slope is None else (slope < SATURATED).double(),
    }
    if outcome.margin is not None and outcome.offset is not None:
        margins["margin/refined"] = outcome.margin - outcome.offset
    return {name: Counted(value, present.both) for name, value in margins.items() if value is not None}


def of_responses(logps: PairLogProbs, batch: PairBatch, present: Presence) -> NamedValues:
    """Return log-probabilities and lengths of every response, and the length gap where there are two."""
    sums, lengths = logps.policy.detach().double().sum(-1), logps.mask.sum(-1).double()
    values = {"lengths/truncated": Counted(batch.truncated.double(), present.sides)}
    for side, name in enumerate(SIDES[: sums.shape[1]]):
        counts = present.sides[:, side]
        values[f"log_probs/{name}/sum"] = Counted(sums[:, side], counts)
        values[f"log_probs/{name}/mean"] = Counted(sums[:, side] / lengths[:, side], counts)
        values[f"lengths/{name}"] = Counted(lengths[:, side], counts)
    if sums.shape[1] == 2:
        values["lengths/gap"] = Counted(lengths[:, 0] - lengths[:, 1], present.both)
    return values


def of_scales(logps: PairLogProbs, present: Presence) -> NamedValues:
    """Return the margin of the log-ratios by sums and by means, whatever is optimised.

    Without a reference it is that of the log-probabilities.

    ``margin/signs_differ`` is the share of pairs on which the two disagree about the preferred response: for these the
    averaging decides which way training pulls.
    """
    if logps.mask.shape[1] != 2:
        return {}
    ratio = logps.policy.detach() if logps.reference is None else logps.policy.detach() - logps.reference
    sums = ratio.double().sum(-1)
    means = sums / logps.mask.sum(-1)
    by_sum, by_mean = sums[:, 0] - sums[:, 1], means[:, 0] - means[:, 1]
    margins = {"by_sum": by_sum, "by_mean": by_mean, "signs_differ": (by_sum.sign() != by_mean.sign()).double()}
    return {f"margin/{name}": Counted(value, present.both) for name, value in margins.items()}


def of_displacement(logps: PairLogProbs, present: Presence) -> NamedValues:
    """Return how far the responses' log-probs have moved from a reference that is the policy before its first step.

    A margin also grows while the chosen response loses probability, if the rejected one loses more (likelihood
    displacement, Razin et al. 2024, arXiv:2410.08847). ``fell`` is the share of responses that have lost.
    """
    if logps.reference is None:
        return {}
    sums = (logps.policy.detach() - logps.reference).double().sum(-1)
    changes = {"sum": sums, "mean": sums / logps.mask.sum(-1), "fell": (sums < 0).double()}
    return {
        f"displacement/{name}/{change}": Counted(value[:, side], present.sides[:, side])
        for side, name in enumerate(SIDES[: sums.shape[1]])
        for change, value in changes.items()
    }


def of_length_gaps(outcome: Outcome, logps: PairLogProbs, present: Presence) -> NamedValues:
    """Return the bucket of each pair, whether it is ranked right, and what length alone would do.

    ``lengths/longer_wins`` is the accuracy of the rule that the longer response is the better one, ties counted one
    half: what a model reaches that has learned nothing but length.

    >>> from lit_align.objectives import dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()  # 10 tokens against 40
    >>> values = of_length_gaps(dpo()(pair), pair, Presence.of(pair))
    >>> [name for name in BUCKETS if values[f"lengths/chosen_is/{name}"].value.any()]
    ['much_shorter']
    """
    if outcome.rewards.shape[1] != 2:
        return {}
    lengths = logps.mask.sum(-1).double()
    gap, rewards = lengths[:, 0] - lengths[:, 1], outcome.rewards[:, 0] - outcome.rewards[:, 1]
    won = (rewards > 0).double() + 0.5 * (rewards == 0).double()
    bucket = length_bucket(lengths)
    longer = (gap > 0).double() + 0.5 * (gap == 0).double()
    values = {"lengths/longer_wins": Counted(longer, present.both)}
    for number, name in enumerate(BUCKETS):
        inside = bucket == number
        values[f"lengths/chosen_is/{name}"] = Counted(inside.double(), present.both)
        values[f"rewards/accuracies/chosen_{name}"] = Counted(won, present.both & inside)
    return values


def length_bucket(lengths: Tensor) -> Tensor:
    """Return the place of each pair's bucket in ``BUCKETS``; multiplied out: an absent side divides nothing."""
    chosen, rejected = lengths[:, 0], lengths[:, 1]
    much_shorter, shorter = 2 * chosen <= rejected, 10 * chosen < 9 * rejected
    much_longer, longer = chosen >= 2 * rejected, 9 * chosen > 10 * rejected
    number = torch.full_like(chosen, 2, dtype=torch.long)
    for place, inside in ((1, shorter), (0, much_shorter), (3, longer), (4, much_longer)):
        number = torch.where(inside, place, number)
    return number


def of_gradient(
    grad_logps: PairTokens, logps: PairLogProbs, batch: PairBatch, present: Presence, quarters: Sequence[float] = ()
) -> NamedValues:
    r"""Return the gradient weight of each response: $\sum_t |\partial\,\mathrm{loss} / \partial \log\pi(y_t)|$.

    With sums every token of a response is pulled equally hard, so long ones weigh more; with means they do not.

    Args:
        grad_logps: gradient of the weighted sum of the losses with respect to ``logps.policy``.
        logps: of the responses.
        batch: the pairs.
        present: which responses are present.
        quarters: the three lengths that divide the training responses into quarters; none leaves the quarters out.
    """
    weight = batch.weight.double().unsqueeze(-1)
    counts = present.sides & (weight > 0)
    force = grad_logps.detach().double().abs().sum(-1) / weight
    values = {
        f"gradient/{name}": Counted(force[:, side], counts[:, side])
        for side, name in enumerate(SIDES[: force.shape[1]])
    }
    if quarters:
        bounds = on_device(tuple(quarters), torch.double, force.device)
        quarter = torch.searchsorted(bounds, logps.mask.sum(-1).double())
        for number, name in enumerate(QUARTERS):
            values[f"gradient/{name}_quarter"] = Counted(force, counts & (quarter == number))
    return values
