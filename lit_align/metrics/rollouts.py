"""Means over sampled responses, exact over unequal batches and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.online.matching import PairedPreferences
from lit_align.online.objective import Experience
from lit_align.types import Rollout, RolloutScores

ROLLOUT_METRICS = (
    *("score", "score/squared", "reward", "length", "eos_rate", "entropy", "entropy/per_token", "kl", "kl/per_token"),
    *("advantage", "advantage/squared", "tie_rate", "distinct", "paired"),
    *("loss/policy", "loss/value", "update/clipped", "update/kl", "values/error", "return", "return/squared"),
)
HIDDEN = ("score/squared", "advantage/squared", "values/error", "return", "return/squared")
REPORTED_METRICS = (
    *(name for name in ROLLOUT_METRICS if name not in HIDDEN),
    *("score/std", "advantage/std", "values/explained"),
)
"""Names of what may be reported."""


class RolloutMetrics(Metric):
    """Means over responses: of the samples themselves, and of what the updates did with them.

    ``entropy`` is ``-Σ_t log π`` and ``kl`` is ``Σ_t (log π - log π_ref)``, each of the whole response, as estimates
    from the sampled responses; ``*/per_token`` divides the sum of all by the number of all tokens.
    ``tie_rate`` is the share of pairs of responses to one prompt with equal scores, ``distinct`` the share of
    different ones. ``values/explained`` is the share of the variance of all returns that the values explain. A number
    that there is nothing to form from is absent.
    """

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(len(ROLLOUT_METRICS), dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("weights", zeros.clone(), dist_reduce_fx="sum")

    def update(
        self, rollout: Rollout, ended: Tensor, texts: Sequence[str], experience: Experience | None = None
    ) -> None:
        """Add responses.

        Args:
            rollout: the responses.
            ended: true for a response that ended by itself.
            texts: the responses as text.
            experience: their rewards and advantages; None where the objective forms none.
        """
        weight, lengths = rollout.weight.double(), rollout.mask.sum(-1).double()
        log_prob = _whole(rollout.policy, rollout)
        self._mean("score", rollout.score, weight)
        self._mean("score/squared", rollout.score.double() ** 2, weight)
        self._mean("length", lengths, weight)
        self._mean("eos_rate", ended, weight)
        self._mean("entropy", -log_prob, weight)
        self._mean("entropy/per_token", -log_prob / lengths, weight * lengths)
        if rollout.reference is not None:
            apart = log_prob - _whole(rollout.reference, rollout)
            self._mean("kl", apart, weight)
            self._mean("kl/per_token", apart / lengths, weight * lengths)
        self._groups(rollout, texts)
        if experience is not None:
            self._rewards(rollout, experience)

    def _rewards(self, rollout: Rollout, experience: Experience) -> None:
        """Add rewards and advantages, and how far the values were from the returns."""
        self._mean("reward", experience.rewards.double().sum(-1), rollout.weight)
        tokens = rollout.weight.double()[:, None] * rollout.mask  # no selection, whose size a host would wait for

        def scored(values: Tensor) -> Tensor:
            return torch.where(rollout.mask, values, 0.0).double()

        self._mean("advantage", scored(experience.advantage), tokens)
        self._mean("advantage/squared", scored(experience.advantage) ** 2, tokens)
        if experience.returns is not None and rollout.values is not None:
            self._mean("values/error", scored(experience.returns - rollout.values) ** 2, tokens)
            self._mean("return", scored(experience.returns), tokens)
            self._mean("return/squared", scored(experience.returns) ** 2, tokens)

    def _groups(self, rollout: Rollout, texts: Sequence[str]) -> None:
        """Compare the responses to each prompt with each other."""
        first, second = same_group(rollout.group)
        if not len(first):
            return
        self._mean("tie_rate", rollout.score[first] == rollout.score[second], rollout.weight[first])
        keys = list(zip(rollout.group.tolist(), texts, strict=True))
        new = [key not in keys[:place] for place, key in enumerate(keys)]
        distinct = torch.tensor(new).to(rollout.weight.device, non_blocking=True)
        self._mean("distinct", distinct, rollout.weight)

    def add(self, values: Mapping[str, RolloutScores], weight: Tensor) -> None:
        """Add numbers of an update, one per response."""
        for name, value in values.items():
            self._mean(name, value.detach(), weight)

    def _mean(self, name: str, value: Tensor, weight: Tensor) -> None:
        place = ROLLOUT_METRICS.index(name)
        self.sums[place] += (value.double() * weight.double()).sum()
        self.weights[place] += weight.double().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return name to number."""
        means = {
            name: self.sums[place] / self.weights[place]
            for place, name in enumerate(ROLLOUT_METRICS)
            if self.weights[place] > 0
        }
        named = {name: value.float() for name, value in means.items() if name not in HIDDEN}
        for name in ("score", "advantage"):
            if name in means:
                named[f"{name}/std"] = (means[f"{name}/squared"] - means[name] ** 2).clamp_min(0).sqrt().float()
        if "return" in means:
            spread = means["return/squared"] - means["return"] ** 2
            if float(spread) > 1e-12 * float(means["return/squared"]):  # not 0 but for rounding
                named["values/explained"] = (1 - means["values/error"] / spread).float()
        return named


class WeightedPreferences(NamedTuple):
    """Pairs of responses to the same prompt, with their weights."""

    preferences: PairedPreferences
    weight: Tensor


def pairs_of(rollout: Rollout) -> WeightedPreferences:
    """Return all pairs of responses to the same prompt; none where each prompt has one response."""
    first, second = same_group(rollout.group)
    log_prob, score = _whole(rollout.policy, rollout), rollout.score.double()
    return WeightedPreferences(
        PairedPreferences(score[first] - score[second], log_prob[first] - log_prob[second]), rollout.weight[first]
    )


def same_group(group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of both responses of every pair of responses to one prompt.

    >>> same_group(torch.tensor([5, 5, 7, 5]))
    (tensor([0, 0, 1]), tensor([1, 3, 3]))
    """
    same = (group[:, None] == group[None]).triu(1)
    first, second = same.nonzero(as_tuple=True)
    return first, second


def _whole(values: Tensor, rollout: Rollout) -> Tensor:
    return torch.where(rollout.mask, values, 0.0).sum(-1, dtype=torch.float64)
