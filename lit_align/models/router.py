"""The load-balancing loss of the routers of a mixture of experts, for each pair by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_align.compat.transformers import router_modules
from lit_align.models.lm_head.patch import base_of
from lit_align.types import Margin


@dataclass(frozen=True)
class ReadTokens:
    """For each token that a model reads, the pair that it belongs to and how many of its sequences it stands for.

    Args:
        pair: position of the pair in the batch.
        count: 1; 2 for a token that both sides share; 0 for padding, and for the last token of a sequence, which some
            layouts do not read.
    """

    pair: Int[Tensor, "row token"]
    count: Int[Tensor, "row token"]


class RouterBalance:
    r"""Computes $E\sum_e f_e P_e$ for each pair, over the tokens of its two sequences and all layers.

    $f_e$ is how often a token chooses expert e, $P_e$ the mean probability that the routers give it, E the number of
    experts: the loss of Switch Transformer (Fedus et al. 2021, arXiv:2101.03961, Eq. 4 to 6), with all layers taken
    together as in transformers. There it is a function of a micro-batch, and so of how a step is split. Here it is one
    of a pair: the sum over pairs is the same for any micro-batches, ranks and layouts, and for a micro-batch of one
    pair it is that of transformers, apart from the last token of each sequence, which predicts nothing.

    Args:
        model: a causal language model of transformers, with or without an adapter.

    Raises:
        ValueError: transformers has no such loss for the model.
    """

    def __init__(self, model: nn.Module) -> None:
        base = base_of(model)
        self.routers = router_modules(base)
        if not self.routers or getattr(base.config, "router_aux_loss_coef", None) is None:
            raise ValueError(
                "model.router_loss is for mixtures of experts whose load transformers balances by a loss; "
                f"{base.config.model_type} is none: leave it out"
            )
        self.chosen = int(base.config.num_experts_per_tok)

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Collect the logits of all routers during a forward pass, but not while gradient checkpointing repeats it."""
        logits: list[Tensor] = []

        def collect(index: int) -> Callable[..., None]:
            return lambda module, inputs, output: logits.append(output[index] if isinstance(output, tuple) else output)

        handles = [router.register_forward_hook(collect(index)) for router, index in self.routers]
        try:
            yield logits
        finally:
            for handle in handles:
                handle.remove()

    def losses(self, logits: list[Tensor], reads: ReadTokens, pairs: int) -> Margin:
        """Return the loss of each pair, with its graph.

        Args:
            logits: of each router, for all tokens that were read.
            reads: which tokens these were.
            pairs: number of pairs.
        """
        pair, count = reads.pair.flatten(), reads.count.flatten().float().unsqueeze(-1)
        experts = logits[0].shape[-1]
        empty = count.new_zeros(pairs, experts)
        chosen, probability = empty, empty
        for layer in logits:
            probabilities = layer.reshape(-1, experts).float().softmax(-1)
            picked = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(self.chosen, -1).indices, 1.0)
            chosen = chosen.index_add(0, pair, picked.detach() * count)
            probability = probability.index_add(0, pair, probabilities * count)
        tokens = count.new_zeros(pairs, 1).index_add(0, pair, count).clamp(min=1) * len(logits)
        return experts * (chosen / tokens * probability / tokens).sum(-1)
