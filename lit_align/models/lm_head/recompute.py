"""Two passes over the logits: log-probabilities of any use, whose tiles the backward pass forms again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lit_align.models.lm_head.projection import (
    Extras,
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
class Head:
    """A linear output head as it is trained; ``cast`` gives it as it is multiplied.

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
        """The head without gradient, in autocast's dtype where autocast is on."""
        dtype = multiplied_in(self.weight)
        bias = None if self.bias is None else self.bias.detach().to(dtype)
        return Projection(self.weight.detach().to(dtype), bias, self.rule, self.workspace)

    def values(self, hidden: Hidden, targets: Targets, extras: Extras = Extras()) -> TokenValues:
        """Log-probabilities with gradient, of any use; the backward pass forms each tile a second time."""
        asked: Any = TwoPass.apply
        log_probs, collision, entropy = asked(hidden, self.weight, self.bias, targets, self, extras)
        return TokenValues(log_probs, collision, entropy)


class TwoPass(torch.autograd.Function):
    """Log-probabilities of tokens whose tiles are formed again in the backward pass."""

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any,
        hidden: Hidden,
        weight: Tensor,
        bias: Tensor | None,
        targets: Targets,
        head: Head,
        extras: Extras,
    ) -> tuple[PerToken, PerToken | None, PerToken | None]:
        """Everything that is wanted; hidden states and weights are kept, logits are not."""
        projection = head.cast()
        with torch.autocast(hidden.device.type, enabled=False):
            values = projection.values(hidden.detach().to(projection.weight.dtype), targets, extras)
        ctx.save_for_backward(hidden, projection.weight, projection.bias, targets)
        ctx.head = head
        ctx.mark_non_differentiable(*(extra for extra in (values.collision, values.entropy) if extra is not None))
        return values.log_probs, values.collision, values.entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slopes: PerToken, *extras: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of hidden states, weight and bias."""
        hidden, weight, bias, targets = ctx.saved_tensors
        projection = Projection(weight, bias, ctx.head.rule, ctx.head.workspace)
        into = projection.empty_gradient(*ctx.needs_input_grad[1:3])
        out = torch.empty_like(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = hidden.to(weight.dtype)
            for part in projection.parts(0, len(targets)):
                tile = projection.tile(narrow[part], targets[part])
                out[part] = projection.push(tile, slopes[part], narrow[part], into)
        return out, *as_parameters(into, ctx.head), None, None, None


def as_parameters(gradient: HeadGradient, head: Head) -> tuple[Tensor | None, Tensor | None]:
    """The gradients in the dtypes of weight and bias."""
    weight, bias = gradient.weight, gradient.bias
    return (
        None if weight is None else weight.to(head.weight.dtype),
        None if bias is None or head.bias is None else bias.to(head.bias.dtype),
    )


def multiplied_in(weight: Tensor) -> torch.dtype:
    """The dtype in which a product with ``weight`` is taken here: autocast's, or its own."""
    kind = weight.device.type
    narrowed = torch.is_autocast_enabled(kind) and weight.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if narrowed else weight.dtype
