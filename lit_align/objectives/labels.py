"""A label is what the rows say of a pair beside its order: how surely it is in that order, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from lit_align.types import Margin, PairLogProbs, PairScores

Scores = Callable[[PairLogProbs], PairScores]


def swapped(logps: PairLogProbs) -> PairLogProbs:
    """The same pairs with their sides exchanged: what was rejected is chosen, and the stated margin turns its sign.

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


def swapped_scores(scores: Scores) -> Scores:
    """The scores of swapped pairs, out of the rule that scores them as they were."""
    return lambda logps: scores(swapped(logps)).flip(1)


def expected_loss(probability: Margin | None, loss: Margin, swapped_loss: Callable[[], Margin]) -> Margin:
    """``p L + (1 - p) L_swapped``: the loss of a pair whose order is only probable; L where nothing is said.

    Args:
        probability: p of each pair; None where the rows do not say it.
        loss: as if each pair were in its order.
        swapped_loss: gives the loss as if none were.

    >>> expected_loss(torch.tensor([0.75]), torch.tensor([1.0]), lambda: torch.tensor([3.0]))
    tensor([1.5000])
    """
    if probability is None:
        return loss
    certainty = probability.to(loss.dtype)
    return certainty * loss + (1 - certainty) * swapped_loss()


def with_stated_margin(offset: Margin, logps: PairLogProbs, beta: float) -> Margin:
    """``offset + margin / β``: the column is a reward and stands beside β m, an offset is in nats."""
    return offset if logps.margin is None else offset + logps.margin.to(offset.dtype) / beta


def slope_of(loss: Callable[[Margin], Margin], margin: Margin) -> Margin:
    """|d loss / d margin|, also where no gradient is recorded.

    Args:
        loss: the loss of each pair from its margin; what else it closes over is a constant.
        margin: where to take the slope, in nats.

    >>> slope_of(torch.square, torch.tensor([-3.0]))
    tensor([6.])
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = margin.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
    return slope.abs()


def constant(values: Margin) -> Margin:
    """A copy that no gradient passes, and that a gradient may be computed with even if inference mode made it."""
    with torch.inference_mode(False):
        return values.detach().clone()
