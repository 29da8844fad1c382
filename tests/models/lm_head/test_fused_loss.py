"""One pass over the logits gives the loss and gradients of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_align.models.lm_head.fused_loss import (
    FusedInputs,
    FusedLoss,
    HeadGradientAccumulator,
    LossFn,
    ScoredTokens,
)
from lit_align.models.lm_head.projection import LogitRule, TokenValues, Workspace
from lit_align.models.lm_head.recompute import LinearHead
from lit_align.types import LossOutput, PairLogProbs
from tests.models.lm_head.test_projection import TINY, Largest, sizes

ENDS = [4, 5, 5, 33, 40]
"""Five pairs: one of no token, one of more tokens than a tile has rows."""


def scored_tokens(targets: Tensor, ends: list[int]) -> ScoredTokens:
    """One-sided pairs, each with the tokens up to its end."""
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    row = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor(lengths))
    column = torch.cat([torch.arange(length) for length in lengths])
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).view(-1, 1, 1)
    return ScoredTokens(targets, ends, row, column, mask)


def fused_loss(
    head: LinearHead,
    hidden: Tensor,
    tokens: ScoredTokens,
    loss_fn: LossFn,
    collision: bool = False,
    accumulator: HeadGradientAccumulator | None = None,
) -> LossOutput:
    inputs = FusedInputs(head, tokens, loss_fn, collision, accumulator or HeadGradientAccumulator())
    loss, values, grad, collisions = FusedLoss.apply(hidden, head.weight, head.bias, inputs)
    logps = tokens.log_probs(TokenValues(values, collisions), tokens.pairs)
    return LossOutput(loss, logps, tokens.unpack(grad, tokens.pairs))


def squared(pairs: slice, logps: PairLogProbs) -> Tensor:
    """Σ over pairs of (Σ of the pair's log-probs)², each times its number and its collision."""
    assert logps.collision is not None
    number = torch.arange(pairs.start, pairs.stop) + 1
    return (number * logps.policy.sum((1, 2)) ** 2 * (1 + logps.collision.sum((1, 2)))).sum()


def summed(pairs: slice, logps: PairLogProbs) -> Tensor:
    """Σ of log-probs."""
    return logps.policy.sum()


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5, cap=2.0)], ids=str)
@pytest.mark.parametrize("megabytes", [TINY, 64.0])
@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_equals_two_passes(rule: LogitRule, megabytes: float, scale: float) -> None:
    hidden, weight, bias, targets = sizes(40, 23)
    tokens = scored_tokens(targets, ENDS)
    head = LinearHead(weight, bias, rule, Workspace(megabytes))
    truth = head.values(hidden, targets, collision=True)
    loss = squared(slice(0, 5), tokens.log_probs(truth, tokens.pairs))
    expected = torch.autograd.grad(scale * loss, [hidden, weight, bias])
    charged = fused_loss(head, hidden, tokens, squared, collision=True)
    found = torch.autograd.grad(scale * charged.loss, [hidden, weight, bias])
    torch.testing.assert_close(charged.loss, loss)
    torch.testing.assert_close(charged.logps.policy, tokens.unpack(truth.log_probs, tokens.pairs))
    assert not charged.logps.policy.requires_grad
    leaf = charged.logps.policy.requires_grad_()
    (grad,) = torch.autograd.grad(squared(tokens.pairs, charged.logps), leaf)
    torch.testing.assert_close(charged.grad_logps, grad * charged.logps.mask)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_loss_across_pairs_would_be_wrong() -> None:
    """The law needs a sum over pairs: the square of the sum over all of them is another number in groups."""
    hidden, weight, _, targets = sizes(40, 23)
    head = LinearHead(weight, None, LogitRule(), Workspace(TINY))

    def across(pairs: slice, logps: PairLogProbs) -> Tensor:
        return logps.policy.sum() ** 2

    charged = fused_loss(head, hidden, scored_tokens(targets, ENDS), across)
    assert not charged.loss.isclose(head.values(hidden, targets).log_probs.sum() ** 2)


def test_logits_are_formed_once() -> None:
    """Tokens that fit into tiles are projected once; two passes project each of them twice."""
    vocabulary = 3_000
    hidden, weight, _, targets = sizes(24, vocabulary)
    head, ends = LinearHead(weight, None, LogitRule(), Workspace(TINY)), [8, 16, 24]
    with Largest(vocabulary) as once:
        fused_loss(head, hidden, scored_tokens(targets, ends), summed).loss.backward()
    with Largest(vocabulary) as twice:
        head.values(hidden, targets).log_probs.sum().backward()
    assert (once.projected, twice.projected) == (24, 48)
    assert once.numel <= 16 * vocabulary


def test_a_group_without_loss_has_no_gradient() -> None:
    """The first pair has no loss."""
    hidden, weight, _, targets = sizes(6, 11)
    head = LinearHead(weight, None, LogitRule(), Workspace(TINY))

    def second(pairs: slice, logps: PairLogProbs) -> Tensor:
        return logps.policy.new_zeros(()) if pairs.start == 0 else logps.policy.sum()

    head_rows = Workspace(TINY).rows(11, torch.float64)
    assert head_rows == 16
    charged = fused_loss(head, torch.cat([hidden] * 4), scored_tokens(targets.repeat(4), [12, 24]), second)
    (gradient,) = torch.autograd.grad(charged.loss, hidden)
    truth = 2 * torch.autograd.grad(head.values(hidden, targets).log_probs.sum(), hidden)[0]
    torch.testing.assert_close(gradient, truth)


def test_the_gradient_can_be_asked_for_once() -> None:
    hidden, weight, _, targets = sizes(6, 11)
    head = LinearHead(weight, None, LogitRule(), Workspace())
    loss = fused_loss(head, hidden, scored_tokens(targets, [6]), summed).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be computed once"):
        loss.backward()


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_portions_sum_the_gradient_of_the_head_in_one_place(scale: float) -> None:
    """After the last chunk it is the gradient of all of them; before that there is none."""
    hidden, weight, bias, targets = sizes(40, 23)
    head, cuts = LinearHead(weight, bias, LogitRule(), Workspace(TINY)), [slice(0, 5), slice(5, 33), slice(33, 40)]
    truth = torch.autograd.grad(scale * head.values(hidden, targets).log_probs.square().sum(), [weight, bias])
    head_sum, buffers = HeadGradientAccumulator(len(cuts)), set()
    for cut in cuts:
        assert weight.grad is None
        tokens = scored_tokens(targets[cut], [cut.stop - cut.start])
        charged = fused_loss(
            head, hidden[cut], tokens, lambda pairs, logps: logps.policy.square().sum(), accumulator=head_sum
        )
        if head_sum._sum is not None and head_sum._sum.weight is not None:
            buffers.add(head_sum._sum.weight.data_ptr())
        (scale * charged.loss).backward()
    assert buffers == {weight.grad.data_ptr()}  # type: ignore[union-attr]
    for ours, theirs in zip((weight.grad, bias.grad), truth, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
