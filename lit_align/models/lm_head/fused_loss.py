"""The loss of a batch fused with the output projection: each tile of logits is computed once and never kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from lit_align.models.lm_head.projection import HeadGradient, Hidden, PerToken, TokenValues
from lit_align.models.lm_head.recompute import LinearHead
from lit_align.types import PairLogProbs, PairMask

LossFn: TypeAlias = Callable[[slice, PairLogProbs], Tensor]
"""From some pairs of a batch and their log-probabilities to their summed loss."""


@dataclass(frozen=True)
class ScoredTokens:
    """The scored tokens of a batch, concatenated pair by pair.

    Args:
        targets: their ids.
        ends: for each pair, the number of tokens up to and including its last one.
        row: row of each token in the flattened ``[pair, side]`` axes.
        column: position of each token among the scored tokens of its response.
        mask: where tokens go in ``[pair, side, token]``, left-aligned.
    """

    targets: Int[Tensor, " scored"]
    ends: Sequence[int]
    row: Int[Tensor, " scored"]
    column: Int[Tensor, " scored"]
    mask: PairMask

    @property
    def pairs(self) -> slice:
        """All pairs."""
        return slice(0, len(self.ends))

    def groups(self, rows: int) -> list[slice]:
        """Group neighbouring pairs so that each group has at most ``rows`` tokens; a longer pair is a group by itself.

        >>> nothing = torch.zeros(0, dtype=torch.long)
        >>> ScoredTokens(nothing, [4, 8, 19, 20], nothing, nothing, torch.ones(4, 1, 1).bool()).groups(rows=8)
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
        """
        groups, first = [], 0
        for pair in range(1, len(self.ends) + 1):
            start = self.ends[first - 1] if first else 0
            if pair == len(self.ends) or self.ends[pair] - start > rows:
                groups.append(slice(first, pair))
                first = pair
        return groups

    def span(self, pairs: slice) -> slice:
        """Return the positions of the tokens of some pairs."""
        return slice(self.ends[pairs.start - 1] if pairs.start else 0, self.ends[pairs.stop - 1])

    def unpack(self, values: PerToken, pairs: slice) -> Tensor:
        """Arrange the values of some pairs as ``[pair, side, token]``, left-aligned and zero elsewhere.

        >>> index = torch.tensor([0, 0, 1])
        >>> tokens = ScoredTokens(index, [3], index, torch.tensor([0, 1, 0]), torch.ones(1, 2, 2).bool())
        >>> tokens.unpack(torch.tensor([-1.0, -2.0, -3.0]), tokens.pairs).tolist()
        [[[-1.0, -2.0], [-3.0, 0.0]]]
        """
        _, sides, width = self.mask.shape
        span = self.span(pairs)
        places = (self.row[span] - pairs.start * sides, self.column[span])
        count = pairs.stop - pairs.start
        return values.new_zeros(count * sides, width).index_put(places, values).view(count, sides, width)

    def log_probs(self, values: TokenValues, pairs: slice) -> PairLogProbs:
        """Arrange the log-probabilities of some pairs as a record with no reference."""
        collision = None if values.collision is None else self.unpack(values.collision, pairs)
        return PairLogProbs(self.unpack(values.log_probs, pairs), None, self.mask[pairs], collision=collision)


class HeadGradientAccumulator:
    """Accumulates the output head's gradient over the chunks of a batch and passes it to autograd with the last chunk.

    The gradient is as large as the head. Without this, autograd would allocate, zero and add one for each chunk. The
    loss of every chunk must be scaled by the same factor.

    Args:
        chunks: number of chunks.
    """

    def __init__(self, chunks: int = 1) -> None:
        self._remaining = chunks
        self._sum: HeadGradient | None = None

    def buffers(self, zeros: Callable[[], HeadGradient]) -> HeadGradient:
        """Return the buffers that a chunk adds to.

        Args:
            zeros: allocates them for the first chunk.
        """
        if self._sum is None:
            self._sum = zeros()
        return self._sum

    def finish_chunk(self) -> HeadGradient:
        """Return the accumulated gradient after the last chunk, and nothing before."""
        self._remaining -= 1
        if self._remaining or self._sum is None:
            return HeadGradient(None, None)
        total, self._sum = self._sum, None
        return total


@dataclass(frozen=True)
class FusedInputs:
    """What the fused loss needs beside differentiable tensors.

    Args:
        head: the output head.
        tokens: the scored tokens.
        loss_fn: called for a few neighbouring pairs at a time; must be differentiable in ``policy``.
        collision: whether ``loss_fn`` needs the collision log-probabilities.
        accumulator: shared by all chunks of an optimizer step's micro-batch.
    """

    head: LinearHead
    tokens: ScoredTokens
    loss_fn: LossFn
    collision: bool
    accumulator: HeadGradientAccumulator


class FusedLoss(torch.autograd.Function):
    r"""A loss $\sum_i L_i(\log\pi_i)$ over pairs with its gradient, forming each tile of logits once.

    The gradient of each group of pairs is computed in the forward pass, while the group's logits are in memory; the
    backward pass only scales it and can run once. This is exact only if no pair's loss depends on another's.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Hidden, weight: Tensor, bias: Tensor | None, inputs: FusedInputs
    ) -> tuple[Tensor, PerToken, PerToken, PerToken | None]:
        """Compute the loss, log-probabilities, their gradient and collisions, group by group."""
        projection, tokens, device = inputs.head.cast(), inputs.tokens, hidden.device.type
        narrow = hidden.detach().to(projection.weight.dtype)
        into = inputs.accumulator.buffers(lambda: projection.empty_gradient(*ctx.needs_input_grad[1:3]))
        grad_hidden = torch.empty_like(hidden, requires_grad=False)
        losses, grads, parts = [], [], []
        for pairs in tokens.groups(projection.rows):
            span = tokens.span(pairs)
            rows, targets = narrow[span], tokens.targets[span]
            with torch.autocast(device, enabled=False):
                tile = projection.tile(rows, targets) if len(targets) <= projection.rows else None
                if tile is None:
                    values = projection.values(rows, targets, inputs.collision)
                else:
                    values = TokenValues(tile.log_probs, tile.collision() if inputs.collision else None)
            with torch.enable_grad():
                leaf = values.log_probs.detach().requires_grad_()
                loss = inputs.loss_fn(pairs, tokens.log_probs(TokenValues(leaf, values.collision), pairs))
            grad = torch.autograd.grad(loss, leaf)[0] if loss.requires_grad else torch.zeros_like(leaf)
            with torch.autocast(device, enabled=False):
                if tile is not None:
                    grad_hidden[span] = projection.backward(tile, grad, rows, into)
                else:  # more tokens than a tile has rows: compute each tile again
                    for part in projection.parts(len(targets)):
                        tile = projection.tile(rows[part], targets[part])
                        grad_hidden[span][part] = projection.backward(tile, grad[part], rows[part], into)
            losses.append(loss.detach())
            grads.append(grad)
            parts.append(values)
        ctx.grads = (grad_hidden, *inputs.head.as_parameters(inputs.accumulator.finish_chunk()))
        log_probs, grad = torch.cat([part.log_probs for part in parts]), torch.cat(grads)
        collision = (
            torch.cat([part.collision for part in parts if part.collision is not None]) if inputs.collision else None
        )
        ctx.mark_non_differentiable(log_probs, grad, *(() if collision is None else (collision,)))
        return torch.stack(losses).sum(), log_probs, grad, collision

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor, *values: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass computed."""
        if ctx.grads is None:
            raise RuntimeError("the gradient of a fused loss can be computed once, and it has been")
        grads, ctx.grads = ctx.grads, None
        for grad in grads:
            if grad is not None and (scale.device.type != "cpu" or float(scale) != 1):
                grad.mul_(scale)
        return *grads, None
