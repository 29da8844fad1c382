"""One pass over the logits gives the loss and gradients of two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_align.models.lm_head.fused_loss import HeadSum, Job, Tokens, charge
from lit_align.models.lm_head.projection import Extras, LogitRule, TokenValues, Workspace
from lit_align.models.lm_head.recompute import Head
from tests.models.lm_head.test_projection import TINY, Largest, sizes

ENDS = [4, 5, 5, 33, 40]
"""Five pairs: one of no token, one of more tokens than a tile has rows."""


def squared(pairs: slice, values: TokenValues) -> Tensor:
    """Σ over pairs of (Σ of the pair's log-probs)², each times its number and its collision."""
    assert values.collision is not None
    first = ENDS[pairs.start - 1] if pairs.start else 0
    total = values.log_probs.new_zeros(())
    for pair in range(pairs.start, pairs.stop):
        own = slice((ENDS[pair - 1] if pair else 0) - first, ENDS[pair] - first)
        total = total + (pair + 1) * values.log_probs[own].sum() ** 2 * (1 + values.collision[own].sum())
    return total


def summed(pairs: slice, values: TokenValues) -> Tensor:
    """Σ of log-probs."""
    return values.log_probs.sum()


@pytest.mark.parametrize("rule", [LogitRule(), LogitRule(scale=0.5, cap=2.0)], ids=str)
@pytest.mark.parametrize("megabytes", [TINY, 64.0])
@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_equals_two_passes(rule: LogitRule, megabytes: float, scale: float) -> None:
    hidden, weight, bias, targets = sizes(40, 23)
    extras = Extras(collision=True)
    head = Head(weight, bias, rule, Workspace(megabytes))
    truth = head.values(hidden, targets, extras)
    loss = squared(slice(0, 5), truth)
    expected = torch.autograd.grad(scale * loss, [hidden, weight, bias])
    charged = charge(head, hidden, Job(Tokens(targets, ENDS), squared, extras))
    found = torch.autograd.grad(scale * charged.loss, [hidden, weight, bias])
    torch.testing.assert_close(charged.loss, loss)
    torch.testing.assert_close(charged.values.log_probs, truth.log_probs)
    assert not charged.values.log_probs.requires_grad
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_loss_across_pairs_would_be_wrong() -> None:
    """The law needs a sum over pairs: the square of the sum over all of them is another number in groups."""
    hidden, weight, _, targets = sizes(40, 23)
    head = Head(weight, None, LogitRule(), Workspace(TINY))

    def across(pairs: slice, values: TokenValues) -> Tensor:
        return values.log_probs.sum() ** 2

    charged = charge(head, hidden, Job(Tokens(targets, ENDS), across))
    assert not charged.loss.isclose(head.values(hidden, targets).log_probs.sum() ** 2)


def test_logits_are_formed_once() -> None:
    """Tokens that fit into tiles are projected once; two passes project each of them twice."""
    vocabulary = 3_000
    hidden, weight, _, targets = sizes(24, vocabulary)
    head, ends = Head(weight, None, LogitRule(), Workspace(TINY)), [8, 16, 24]
    with Largest(vocabulary) as once:
        charge(head, hidden, Job(Tokens(targets, ends), summed)).loss.backward()
    with Largest(vocabulary) as twice:
        head.values(hidden, targets).log_probs.sum().backward()
    assert (once.projected, twice.projected) == (24, 48)
    assert once.numel <= 16 * vocabulary


def test_a_group_without_loss_has_no_gradient() -> None:
    """The tokens of the first pair are not charged."""
    hidden, weight, _, targets = sizes(6, 11)
    head = Head(weight, None, LogitRule(), Workspace(TINY))

    def second(pairs: slice, values: TokenValues) -> Tensor:
        return values.log_probs.new_zeros(()) if pairs.start == 0 else values.log_probs.sum()

    head_rows = Workspace(TINY).rows(11, torch.float64)
    assert head_rows == 16
    charged = charge(head, torch.cat([hidden] * 4), Job(Tokens(targets.repeat(4), [12, 24]), second))
    (gradient,) = torch.autograd.grad(charged.loss, hidden)
    truth = 2 * torch.autograd.grad(head.values(hidden, targets).log_probs.sum(), hidden)[0]
    torch.testing.assert_close(gradient, truth)


def test_the_gradient_can_be_asked_for_once() -> None:
    hidden, weight, _, targets = sizes(6, 11)
    head = Head(weight, None, LogitRule(), Workspace())
    loss = charge(head, hidden, Job(Tokens(targets, [6]), summed)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be asked for once"):
        loss.backward()


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_portions_sum_the_gradient_of_the_head_in_one_place(scale: float) -> None:
    """Behind the last portion it is the gradient of all of them; before, there is none."""
    hidden, weight, bias, targets = sizes(40, 23)
    head, cuts = Head(weight, bias, LogitRule(), Workspace(TINY)), [slice(0, 5), slice(5, 33), slice(33, 40)]
    truth = torch.autograd.grad(scale * head.values(hidden, targets).log_probs.square().sum(), [weight, bias])
    head_sum, buffers = HeadSum(len(cuts)), set()
    for cut in cuts:
        assert weight.grad is None
        tokens = Tokens(targets[cut], [cut.stop - cut.start])
        job = Job(tokens, lambda pairs, values: values.log_probs.square().sum(), head_sum=head_sum)
        charged = charge(head, hidden[cut], job)
        if head_sum._sum is not None and head_sum._sum.weight is not None:
            buffers.add(head_sum._sum.weight.data_ptr())
        (scale * charged.loss).backward()
    assert buffers == {weight.grad.data_ptr()}  # type: ignore[union-attr]
    for ours, theirs in zip((weight.grad, bias.grad), truth, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
