"""One pass over the logits: losses that are sums over pairs get their gradient while the tile is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lit_align.models.lm_head.projection import (
    Extras,
    HeadGradient,
    Hidden,
    PerToken,
    Projection,
    Targets,
    TokenValues,
)
from lit_align.models.lm_head.recompute import Head, as_parameters

LossOf: TypeAlias = Callable[[slice, TokenValues], Tensor]
"""The summed loss of some pairs, from the values of their tokens; differentiable in the log-probs."""


@dataclass(frozen=True)
class Tokens:
    """The scored tokens of a batch, one pair behind the other.

    Args:
        targets: their ids.
        ends: for each pair, how many tokens there are up to its last one.
    """

    targets: Targets
    ends: Sequence[int]

    def groups(self, rows: int) -> list[slice]:
        """Neighbouring pairs whose tokens fit into ``rows`` rows; a pair that does not fit stands alone.

        >>> Tokens(torch.zeros(20, dtype=torch.long), [4, 8, 19, 20]).groups(rows=8)
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
        """
        found, first = [], 0
        for pair in range(1, len(self.ends) + 1):
            start = self.ends[first - 1] if first else 0
            if pair == len(self.ends) or self.ends[pair] - start > rows:
                found.append(slice(first, pair))
                first = pair
        return found

    def of(self, pairs: slice) -> slice:
        """Where the tokens of some pairs stand."""
        return slice(self.ends[pairs.start - 1] if pairs.start else 0, self.ends[pairs.stop - 1])


@dataclass(frozen=True)
class Charged:
    """A loss with its graph, and the values that it was formed from, without.

    Args:
        loss: the sum over all pairs; its backward pass only scales gradients that are already there.
        values: what every token's log-probability was.
    """

    loss: Tensor
    values: TokenValues


class HeadSum:
    """The head's gradient over the portions of a batch: summed in one place, and given to autograd with the last.

    A head's gradient is as large as the head. One for each portion would be a second one in memory, to be filled with
    zeros and added up each time.

    Args:
        portions: how many there are. Their losses are scaled alike, by what the last one's is.
    """

    def __init__(self, portions: int = 1) -> None:
        self._left = portions
        self._sum: HeadGradient | None = None

    def so_far(self, zeros: Callable[[], HeadGradient]) -> HeadGradient:
        """To what a portion adds.

        Args:
            zeros: where the sum begins.
        """
        if self._sum is None:
            self._sum = zeros()
        return self._sum

    def close(self) -> HeadGradient:
        """End a portion: the sum behind the last one, nothing before."""
        self._left -= 1
        if self._left or self._sum is None:
            return HeadGradient(None, None)
        found, self._sum = self._sum, None
        return found


@dataclass(frozen=True)
class Job:
    """What is done with the hidden states of a batch.

    Args:
        tokens: the scored tokens.
        loss_of: gives the loss of some pairs.
        extras: what else ``loss_of`` is to be told.
        head_sum: of all portions of one step; its own for a batch that is no portion.
    """

    tokens: Tokens
    loss_of: LossOf
    extras: Extras = Extras()
    head_sum: HeadSum = field(default_factory=HeadSum)


def charge(head: Head, hidden: Hidden, job: Job) -> Charged:
    """The loss of a batch, each pair's gradient formed while its tile is hot.

    It is right for losses that are sums over pairs, and only for these. The gradient can be asked for once.

    Args:
        head: the output head.
        hidden: hidden states in the order of the tokens.
        job: what is done with them.
    """
    applied: Any = OnePass.apply
    loss, log_probs, collision, entropy = applied(hidden, head.weight, head.bias, head, job)
    return Charged(loss, TokenValues(log_probs, collision, entropy))


class OnePass(torch.autograd.Function):
    """The summed loss of a batch whose gradients are formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Hidden, weight: Tensor, bias: Tensor | None, head: Head, job: Job
    ) -> tuple[Tensor, PerToken, PerToken | None, PerToken | None]:
        """Go through the pairs group by group; keep gradients, not logits."""
        projection = head.cast()
        narrow = hidden.detach().to(projection.weight.dtype)
        into = job.head_sum.so_far(lambda: projection.empty_gradient(*ctx.needs_input_grad[1:3]))
        gradient = torch.empty_like(hidden, requires_grad=False)
        losses, found = [], []
        for pairs in job.tokens.groups(projection.rows):
            part = job.tokens.of(pairs)
            step = _Group(projection, narrow[part], job.tokens.targets[part], job.extras)
            values = step.values()
            loss, slopes = _slopes(job.loss_of, pairs, values)
            step.push(slopes, gradient[part], into)
            losses.append(loss)
            found.append(values)
        ctx.gradients = (gradient, *as_parameters(job.head_sum.close(), head))
        values = _joined(found)
        ctx.mark_non_differentiable(
            values.log_probs, *(extra for extra in (values.collision, values.entropy) if extra is not None)
        )
        return torch.stack(losses).sum(), values.log_probs, values.collision, values.entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *values: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass has left."""
        if ctx.gradients is None:
            raise RuntimeError("the gradient of a one-pass loss can be asked for once; it has been")
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None and (scale.is_cuda or float(scale) != 1):
                gradient.mul_(scale)
        return *gradients, None, None


class _Group:
    """Some pairs' tokens: one tile that is formed once, or, if they do not fit, several that are formed twice."""

    def __init__(self, projection: Projection, hidden: Hidden, targets: Targets, extras: Extras) -> None:
        self.projection, self.hidden, self.targets, self.extras = projection, hidden, targets, extras
        with torch.autocast(hidden.device.type, enabled=False):
            self.tile = projection.tile(hidden, targets) if len(targets) <= projection.rows else None

    def values(self) -> TokenValues:
        tile = self.tile
        with torch.autocast(self.hidden.device.type, enabled=False):
            if tile is None:
                return self.projection.values(self.hidden, self.targets, self.extras)
            return TokenValues(
                tile.log_probs,
                tile.collision() if self.extras.collision else None,
                tile.entropy() if self.extras.entropy else None,
            )

    def push(self, slopes: PerToken, out: Hidden, into: HeadGradient) -> None:
        with torch.autocast(self.hidden.device.type, enabled=False):
            if self.tile is not None:
                out.copy_(self.projection.push(self.tile, slopes, self.hidden, into))
                return
            for part in self.projection.parts(0, len(self.targets)):
                tile = self.projection.tile(self.hidden[part], self.targets[part])
                out[part] = self.projection.push(tile, slopes[part], self.hidden[part], into)


def _slopes(loss_of: LossOf, pairs: slice, values: TokenValues) -> tuple[Tensor, PerToken]:
    """The loss of some pairs, and its derivative with respect to each token's log-probability."""
    with torch.enable_grad():
        leaf = values.log_probs.detach().requires_grad_()
        loss = loss_of(pairs, TokenValues(leaf, values.collision, values.entropy))
        if not loss.requires_grad:  # no token of these pairs is charged
            return loss.detach(), torch.zeros_like(leaf)
        (slopes,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), slopes


def _joined(parts: list[TokenValues]) -> TokenValues:
    def join(found: list[Tensor | None]) -> Tensor | None:
        there = [value for value in found if value is not None]
        return torch.cat(there) if there else None

    return TokenValues(
        torch.cat([part.log_probs for part in parts]),
        join([part.collision for part in parts]),
        join([part.entropy for part in parts]),
    )
