"""The output projection from hidden states to log-probabilities of tokens, one tile of logits at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Hidden: TypeAlias = Float[Tensor, "token hidden"]
"""The hidden state that predicts each scored token, i.e. that of the token before it."""
Targets: TypeAlias = Int[Tensor, " token"]
"""Ids of the scored tokens."""
PerToken: TypeAlias = Float[Tensor, " token"]
"""A value per scored token, responses concatenated."""

LEAST_ROWS = 16
"""Minimum rows of a tile. With fewer, reading the weights dominates."""
ROW_STEP = {"cuda": 64}
"""Type of device → rows of logits begin at multiples of so many numbers: its matrix products read and write blocks of
memory, and are slow where rows of a vocabulary of odd size begin between two of them. 1 elsewhere."""


@dataclass(frozen=True)
class LogitRule:
    r"""Map $u = Wh + b$ to logits: $z = s u$, or with a soft cap $z = c \tanh(s u / c)$.

    Args:
        scale: s; ``logit_scale`` of Cohere, one over ``logits_scaling`` of Granite.
        cap: c; ``final_logit_softcapping`` of Gemma 2; None where there is none.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """Return the logits, out of place and differentiable.

        >>> LogitRule(scale=2.0)(torch.tensor([1.5])).item(), LogitRule(cap=1.0)(torch.tensor([0.0])).item()
        (3.0, 0.0)
        """
        scaled = raw if self.scale == 1 else raw * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


@dataclass(frozen=True)
class TokenValues:
    """Values of each scored token's distribution.

    Args:
        log_probs: log π(y).
        collision: log Σ_v π(v)², without gradient; None unless requested.
    """

    log_probs: PerToken
    collision: PerToken | None = None


class Workspace:
    """The memory of one tile of logits, reused between calls: allocating it anew costs a quarter of the matmul.

    Nothing in it outlives a call, so several models can share one workspace.

    Args:
        megabytes: size of a tile in the dtype of the softmax.
    """

    def __init__(self, megabytes: float = 256.0) -> None:
        self.megabytes = megabytes
        self._memory: dict[torch.dtype, Tensor] = {}

    def rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        """Return the number of rows of logits in a tile.

        >>> Workspace(megabytes=1.0).rows(vocabulary=1024, dtype=torch.float32)
        256
        """
        wide = torch.promote_types(dtype, torch.float32)
        return max(LEAST_ROWS, int(self.megabytes * 2**20 / wide.itemsize / vocabulary))

    def tile(self, rows: int, weight: Tensor) -> Tensor:
        """Return uninitialised memory for ``rows`` rows of logits; see ``ROW_STEP`` for the distance between them."""
        step = ROW_STEP.get(weight.device.type, 1)
        width = -(-weight.shape[0] // step) * step
        size, memory = rows * width, self._memory.get(weight.dtype)
        if memory is None or memory.device != weight.device or memory.numel() < size:
            with torch.inference_mode(False):  # inference tensors could not be written to in training
                memory = self._memory[weight.dtype] = torch.empty(size, dtype=weight.dtype, device=weight.device)
        return memory[:size].view(rows, width)[:, : weight.shape[0]]


@dataclass(frozen=True)
class Tile:
    """A few rows of logits after exponentiation.

    Args:
        exponentials: e^(z − max z), in float32 or wider.
        total: their sum over the vocabulary.
        targets: the scored ids.
        log_probs: log π of these.
        slope: dz/du where it is not constant.
    """

    exponentials: Float[Tensor, "token vocabulary"]
    total: PerToken
    targets: Targets
    log_probs: PerToken
    slope: Float[Tensor, "token vocabulary"] | None

    def collision(self) -> PerToken:
        """Return log Σ π². It is at least −log V, so nothing underflows."""
        length: Tensor = torch.linalg.vector_norm(self.exponentials, dim=-1)
        return 2 * (length.log() - self.total.log())


@dataclass(frozen=True)
class HeadGradient:
    """Buffers that accumulate the gradients of weight and bias over tiles, in float32 or wider."""

    weight: Float[Tensor, "vocabulary hidden"] | None
    bias: Float[Tensor, " vocabulary"] | None


@dataclass(frozen=True)
class Projection:
    """A linear output head in the dtype of its matmul, with the rule that follows it.

    Args:
        weight: of the head.
        bias: of the head, if it has one.
        rule: from its outputs to logits.
        workspace: the memory of a tile.
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None
    rule: LogitRule
    workspace: Workspace

    @property
    def rows(self) -> int:
        """Number of rows of a tile."""
        return self.workspace.rows(self.weight.shape[0], self.weight.dtype)

    def tile(self, hidden: Hidden, targets: Targets) -> Tile:
        """Compute the softmax of a few rows. This overwrites the previous tile."""
        logits = self.workspace.tile(len(targets), self.weight)
        torch.mm(hidden, self.weight.t(), out=logits)
        if self.bias is not None:
            logits.add_(self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.rule.scale != 1:
            logits.mul_(self.rule.scale)
        slope = None
        if self.rule.cap is not None:
            logits.div_(self.rule.cap).tanh_()
            slope = logits.square().neg_().add_(1).mul_(self.rule.scale)
            logits.mul_(self.rule.cap)
        picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
        top = logits.amax(-1)
        exponentials = logits.sub_(top.unsqueeze(1)).exp_()
        total = exponentials.sum(-1)
        return Tile(exponentials, total, targets, picked - top - total.log(), slope)

    def values(self, hidden: Hidden, targets: Targets, collision: bool) -> TokenValues:
        """Compute the values of all tokens, tile by tile."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        log_probs = hidden.new_empty(len(targets), dtype=wide)
        collisions = torch.empty_like(log_probs) if collision else None
        for part in self.parts(len(targets)):
            tile = self.tile(hidden[part], targets[part])
            log_probs[part] = tile.log_probs
            if collisions is not None:
                collisions[part] = tile.collision()
        return TokenValues(log_probs, collisions)

    def parts(self, tokens: int) -> list[slice]:
        """Split a number of tokens into tiles."""
        return [slice(start, min(start + self.rows, tokens)) for start in range(0, tokens, self.rows)]

    def backward(self, tile: Tile, grad: PerToken, hidden: Hidden, into: HeadGradient) -> Hidden:
        r"""Return the gradient of the hidden states and accumulate those of weight and bias.

        With $g = \partial L / \partial \log\pi(y)$, $\partial L / \partial z_v = g\,(1[v = y] - \pi_v)$. The tile is
        overwritten.

        Args:
            tile: the softmax of the same rows.
            grad: g.
            hidden: the hidden states of these rows.
            into: accumulates the gradients of weight and bias.
        """
        gradient = tile.exponentials.mul_((-grad / tile.total).unsqueeze(1))
        gradient.scatter_add_(1, tile.targets.unsqueeze(1), grad.to(gradient.dtype).unsqueeze(1))
        if tile.slope is not None:
            gradient.mul_(tile.slope)
        elif self.rule.scale != 1:
            gradient.mul_(self.rule.scale)
        if into.bias is not None:
            into.bias.add_(gradient.sum(0))
        narrow = gradient
        if gradient.dtype != self.weight.dtype:  # the memory of the logits is free again
            narrow = self.workspace.tile(len(gradient), self.weight).copy_(gradient)
        if into.weight is not None and into.weight.dtype == narrow.dtype:
            into.weight.addmm_(narrow.t(), hidden)
        elif into.weight is not None and narrow.is_cuda:  # without rounding each tile's sum to 16 bits
            into.weight.add_(torch.mm(narrow.t(), hidden, out_dtype=into.weight.dtype))
        elif into.weight is not None:
            into.weight.add_(torch.mm(narrow.t(), hidden))
        return torch.mm(narrow, self.weight)

    def empty_gradient(self, weight: bool, bias: bool) -> HeadGradient:
        """Return zeros to accumulate the requested gradients in."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return HeadGradient(
            torch.zeros_like(self.weight, dtype=wide) if weight else None,
            torch.zeros_like(self.weight[:, 0], dtype=wide) if bias and self.bias is not None else None,
        )
