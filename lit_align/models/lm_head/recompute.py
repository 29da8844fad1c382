"""Log-probabilities for losses of any form: logits are computed again, tile by tile, in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_align.models.lm_head.projection import (
    HeadGradient,
    Hidden,
    LogitRule,
    PerToken,
    Projection,
    Targets,
    TokenValues,
    Workspace,
)


@dataclass(frozen=True)
class LinearHead:
    """A linear output head as a trainable layer.

    Args:
        weight: the parameter.
        bias: the parameter, if there is one.
        rule: from its outputs to logits.
        workspace: the memory of a tile.
    """

    weight: Float[Tensor, "vocabulary hidden"]
    bias: Float[Tensor, " vocabulary"] | None
    rule: LogitRule
    workspace: Workspace

    def cast(self) -> Projection:
        """Return the detached head, in the autocast dtype where autocast is enabled."""
        kind = self.weight.device.type
        narrow = torch.is_autocast_enabled(kind) and self.weight.dtype != torch.float64
        dtype = torch.get_autocast_dtype(kind) if narrow else self.weight.dtype
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Projection(self.weight.detach().to(dtype), bias, self.rule, self.workspace)

    def values(self, hidden: Hidden, targets: Targets, collision: bool = False) -> TokenValues:
        """Return differentiable log-probabilities for any use; the backward pass computes each tile a second time.

        Args:
            hidden: hidden states in the order of the targets.
            targets: ids of the scored tokens.
            collision: also return the collision log-probabilities.
        """
        recomputed: Any = Recompute.apply
        return TokenValues(*recomputed(hidden, self.weight, self.bias, targets, (self, collision)))

    def as_parameters(self, gradient: HeadGradient) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients in the dtypes of weight and bias."""
        weight, bias = gradient.weight, gradient.bias
        return (
            None if weight is None else weight.to(self.weight.dtype),
            None if bias is None or self.bias is None else bias.to(self.bias.dtype),
        )


class Recompute(torch.autograd.Function):
    """Log-probabilities of tokens, keeping hidden states and weights but no logits for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Hidden,
        weight: Tensor,
        bias: Tensor | None,
        targets: Targets,
        settings: tuple[LinearHead, bool],
    ) -> tuple[PerToken, PerToken | None]:
        """Compute the values tile by tile."""
        head, collision = settings
        projection = head.cast()
        with torch.autocast(hidden.device.type, enabled=False):
            values = projection.values(hidden.detach().to(projection.weight.dtype), targets, collision)
        ctx.save_for_backward(hidden, projection.weight, projection.bias, targets)
        ctx.head = head
        if values.collision is not None:
            ctx.mark_non_differentiable(values.collision)
        return values.log_probs, values.collision

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: PerToken, collision: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute the gradients of hidden states, weight and bias, tile by tile."""
        hidden, weight, bias, targets = ctx.saved_tensors
        projection = Projection(weight, bias, ctx.head.rule, ctx.head.workspace)
        into = projection.empty_gradient(*ctx.needs_input_grad[1:3])
        out = torch.empty_like(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = hidden.to(weight.dtype)
            for part in projection.parts(len(targets)):
                tile = projection.tile(narrow[part], targets[part])
                out[part] = projection.backward(tile, grad[part], narrow[part], into)
        return out, *ctx.head.as_parameters(into), None, None
