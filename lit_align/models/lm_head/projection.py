"""The vocabulary projection: hidden states become log-probabilities of tokens, one tile of logits at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Hidden: TypeAlias = Float[Tensor, "token hidden"]
"""A hidden state per scored token: that of the place before it."""
Targets: TypeAlias = Int[Tensor, " token"]
"""The scored tokens' ids."""
PerToken: TypeAlias = Float[Tensor, " token"]
"""A value per scored token, one response behind the other."""

LEAST_ROWS = 16
"""Rows of a tile at the least: fewer waste the weights that are read for them."""


@dataclass(frozen=True)
class LogitRule:
    r"""What a model does to $u = Wh + b$ before the softmax: $z = s u$, or with a soft cap $z = c \tanh(s u / c)$.

    Args:
        scale: s; ``logit_scale`` of Cohere, one over ``logits_scaling`` of Granite.
        cap: c; ``final_logit_softcapping`` of Gemma 2; None where there is none.
    """

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """The logits, out of place and differentiable.

        >>> LogitRule(scale=2.0)(torch.tensor([1.5])).item(), LogitRule(cap=1.0)(torch.tensor([0.0])).item()
        (3.0, 0.0)
        """
        scaled = raw if self.scale == 1 else raw * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


@dataclass(frozen=True)
class Extras:
    """What else is wanted of each scored token's distribution, without gradient.

    Args:
        collision: log Σ_v π(v)².
        entropy: −Σ_v π(v) log π(v), in nats.
    """

    collision: bool = False
    entropy: bool = False


@dataclass(frozen=True)
class TokenValues:
    """What the projection says of each scored token."""

    log_probs: PerToken
    collision: PerToken | None = None
    entropy: PerToken | None = None


class Workspace:
    """The memory of one tile, kept from call to call: allocating it anew costs a quarter of the product.

    Models that take turns can have one between them: nothing in it is needed behind a call.

    Args:
        megabytes: size of a tile of logits in the dtype of the softmax.
    """

    def __init__(self, megabytes: float = 64.0) -> None:
        self.megabytes = megabytes
        self._memory: dict[torch.dtype, Tensor] = {}

    def rows(self, vocabulary: int, dtype: torch.dtype) -> int:
        """How many rows of logits a tile has.

        >>> Workspace(megabytes=1.0).rows(vocabulary=1024, dtype=torch.float32)
        256
        """
        wide = torch.promote_types(dtype, torch.float32)
        return max(LEAST_ROWS, int(self.megabytes * 2**20 / wide.itemsize / vocabulary))

    def tile(self, rows: int, weight: Tensor) -> Tensor:
        """Room for ``rows`` rows of logits, with whatever stands in it."""
        size, memory = rows * weight.shape[0], self._memory.get(weight.dtype)
        if memory is None or memory.device != weight.device or memory.numel() < size:
            with torch.inference_mode(False):  # what is born in inference mode could not be written in training
                memory = self._memory[weight.dtype] = torch.empty(size, dtype=weight.dtype, device=weight.device)
        return memory[:size].view(rows, weight.shape[0])


@dataclass(frozen=True)
class Tile:
    """Some rows of logits after the exponential.

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
        """Log Σ π²; at least −log V, so nothing underflows."""
        length: Tensor = torch.linalg.vector_norm(self.exponentials, dim=-1)
        return 2 * (length.log() - self.total.log())

    def entropy(self) -> PerToken:
        """−Σ π log π, a few rows at a time because it needs a second copy of them."""
        parts = self.exponentials.split(LEAST_ROWS)
        charged = torch.cat([torch.special.entr(part).sum(-1) for part in parts])
        return charged / self.total + self.total.log()


@dataclass(frozen=True)
class HeadGradient:
    """Where the gradients of weight and bias are summed up over all tiles, in float32 or wider."""

    weight: Float[Tensor, "vocabulary hidden"] | None
    bias: Float[Tensor, " vocabulary"] | None


@dataclass(frozen=True)
class Projection:
    """A linear output head with its rule, in the dtype in which it is multiplied.

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
        """Rows of a tile."""
        return self.workspace.rows(self.weight.shape[0], self.weight.dtype)

    def tile(self, hidden: Hidden, targets: Targets) -> Tile:
        """The softmax of a few rows; overwrites the tile before it."""
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

    def values(self, hidden: Hidden, targets: Targets, extras: Extras) -> TokenValues:
        """What is wanted of every token, tile by tile."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        log_probs = hidden.new_empty(len(targets), dtype=wide)
        collision = torch.empty_like(log_probs) if extras.collision else None
        entropy = torch.empty_like(log_probs) if extras.entropy else None
        for part in self.parts(0, len(targets)):
            tile = self.tile(hidden[part], targets[part])
            log_probs[part] = tile.log_probs
            if collision is not None:
                collision[part] = tile.collision()
            if entropy is not None:
                entropy[part] = tile.entropy()
        return TokenValues(log_probs, collision, entropy)

    def parts(self, first: int, last: int) -> list[slice]:
        """The tokens from ``first`` to before ``last`` in tiles."""
        return [slice(start, min(start + self.rows, last)) for start in range(first, last, self.rows)]

    def push(self, tile: Tile, slopes: PerToken, hidden: Hidden, into: HeadGradient) -> Hidden:
        r"""The gradient of the hidden states, from $\partial L / \partial \log\pi$ of each token; uses the tile up.

        $\partial L / \partial z_v = g\,(1[v = y] - \pi_v)$.

        Args:
            tile: the softmax of the same rows.
            slopes: g.
            hidden: these rows' hidden states.
            into: to what the gradients of weight and bias are added.
        """
        gradient = tile.exponentials.mul_((-slopes / tile.total).unsqueeze(1))
        gradient.scatter_add_(1, tile.targets.unsqueeze(1), slopes.to(gradient.dtype).unsqueeze(1))
        if tile.slope is not None:
            gradient.mul_(tile.slope)
        elif self.rule.scale != 1:
            gradient.mul_(self.rule.scale)
        if into.bias is not None:
            into.bias.add_(gradient.sum(0))
        narrow = gradient.to(hidden.dtype)
        if into.weight is not None and into.weight.dtype == narrow.dtype:
            into.weight.addmm_(narrow.t(), hidden)
        elif into.weight is not None:
            into.weight.add_(torch.mm(narrow.t(), hidden))
        return torch.mm(narrow, self.weight)

    def empty_gradient(self, weight: bool, bias: bool) -> HeadGradient:
        """Zeros to sum gradients up in, for what needs one."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return HeadGradient(
            torch.zeros_like(self.weight, dtype=wide) if weight else None,
            torch.zeros_like(self.weight[:, 0], dtype=wide) if bias and self.bias is not None else None,
        )
