"""Soft labels: what the rows say of a pair beside its order, how sure it is and by how much the chosen side wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import TypeVar

import torch

from lit_align.types import Margin, Outcome, PairLogProbs

Self = TypeVar("Self")
Call = Callable[[Self, PairLogProbs], Outcome]


def soft_labels(call: Call[Self]) -> Call[Self]:
    """Give an objective's ``__call__`` the expected loss ``p L + (1 - p) L_swapped`` of pairs of probable order.

    Where the rows state no ``preference_probability`` p, the call is left as it is. Of the outcome only the loss is a
    mixture; everything else is that of the pairs in their order.

    Args:
        call: ``__call__`` of an objective, which looks at no probability.

    >>> from lit_align.objectives import dpo
    >>> from lit_align.objectives.examples import worked_pair
    >>> pair = worked_pair()
    >>> dpo(beta=0.1)(replace(pair, preference_probability=torch.tensor([0.75]))).loss  # 0.4032 + 0.25 · 0.7
    tensor([0.5782])
    """

    @wraps(call)
    def mixture(self: Self, logps: PairLogProbs) -> Outcome:
        outcome = call(self, logps)
        if logps.preference_probability is None:
            return outcome
        probability = logps.preference_probability.to(outcome.loss.dtype)
        return replace(outcome, loss=probability * outcome.loss + (1 - probability) * call(self, swapped(logps)).loss)

    return mixture


def swapped(logps: PairLogProbs) -> PairLogProbs:
    """Exchange the sides of each pair: what was rejected is chosen, and the stated margin turns its sign.

    >>> from lit_align.objectives.examples import worked_pair
    >>> swapped(worked_pair()).lengths
    tensor([[40., 10.]])
    """
    return replace(
        logps,
        policy=logps.policy.flip(1),
        reference=None if logps.reference is None else logps.reference.flip(1),
        mask=logps.mask.flip(1),
        prompted=None if logps.prompted is None else swapped(logps.prompted),
        mismatched=None if logps.mismatched is None else swapped(logps.mismatched),
        collision=None if logps.collision is None else logps.collision.flip(1),
        margin=None if logps.margin is None else -logps.margin,
    )


def stated_margin(logps: PairLogProbs, beta: float, like: Margin) -> Margin:
    """Return ``margin / β``, the column as an offset in nats; 0 where the rows state none.

    The column is a reward and stands beside β m.

    Args:
        logps: the pairs.
        beta: β of the contrast.
        like: gives dtype and shape.
    """
    return torch.zeros_like(like) if logps.margin is None else logps.margin.to(like.dtype) / beta
