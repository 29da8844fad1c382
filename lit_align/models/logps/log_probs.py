"""Log-probabilities of batches under one language model, without padding, repeated prompts or whole logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_align.models.lm_head.fused_loss import FusedInputs, FusedLoss, HeadGradientAccumulator, LossFn
from lit_align.models.lm_head.patch import (
    GRADED,
    base_of,
    is_linear,
    logit_rule,
    output_head,
    replaced_head,
    values_through,
)
from lit_align.models.lm_head.projection import LogitRule, TokenValues, Workspace
from lit_align.models.lm_head.recompute import LinearHead
from lit_align.models.logps.inputs import ModelInputs
from lit_align.models.logps.reader import ForwardPass, ModelReader
from lit_align.types import LossOutput, Margin, PairBatch, PairLogProbs, PairTokens


@final
class LogProbReader(ModelReader):
    """Reads batches of pairs with a causal language model, as per-token log-probabilities.

    The model is called through its own forward pass, so sharding, adapters and hooks keep working.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        how: layout and sizes.
        workspace: the memory of a tile; None allocates one.
        rehearsed: see ``ModelReader``.
    """

    def __init__(
        self,
        model: nn.Module,
        how: ForwardPass = ForwardPass(),
        workspace: Workspace | None = None,
        rehearsed: bool = False,
    ) -> None:
        super().__init__(model, how, rehearsed)
        device = next(model.parameters()).device
        self._workspace = Workspace(how.tile_megabytes(device)) if workspace is None else workspace
        self._router_losses: Margin | None = None

    @property
    @override
    def obstacle(self) -> str | None:
        return None if output_head(self.model) is not None else "the model does not say which layer gives its logits"

    @override
    def probe(self, batch: PairBatch) -> PairTokens:
        return self(batch).policy

    def __call__(self, batch: PairBatch, collision: bool = False) -> PairLogProbs:
        r"""Compute $\log\pi(y_t \mid x, y_{<t})$ of the scored tokens, differentiable for a loss of any form.

        Args:
            batch: the pairs; one side or both.
            collision: also compute $\log\sum_v\pi(v \mid x, y_{<t})^2$, without gradient.

        Returns:
            A record without reference, in float32 or wider.
        """
        inputs = self._inputs(batch.on_host, batch.input_ids.device)
        tokens, head = inputs.tokens, output_head(self.model)
        if self.layout == "plain" or head is None:
            logits, targets = self._logits(inputs), tokens.targets
            values = values_through(nn.Identity(), LogitRule(), self._workspace, (logits, targets), collision)
            return tokens.log_probs(values, tokens.pairs)
        forward, rule, linear, collisions = head.forward, logit_rule(self.model), is_linear(head), None

        def lm_head(hidden: Tensor) -> Tensor:
            nonlocal collisions
            rows = inputs.select(hidden)
            if linear:
                values = self._linear(head).values(rows, tokens.targets, collision)
            else:
                values = values_through(forward, rule, self._workspace, (rows, tokens.targets), collision)
            collisions = values.collision
            return values.log_probs

        with replaced_head(self.model, head, lm_head), self._balanced(inputs):
            log_probs = self.model(**inputs.arguments, use_cache=False)[GRADED].flatten()
        return tokens.log_probs(TokenValues(log_probs, collisions), tokens.pairs)

    @property
    def fuses(self) -> bool:
        """Whether `fused_loss` is available: the layout has no whole logits, and the head is linear."""
        head = output_head(self.model)
        return self.layout != "plain" and head is not None and is_linear(head) and torch.is_grad_enabled()

    def fused_loss(
        self,
        batch: PairBatch,
        loss_fn: LossFn,
        collision: bool = False,
        accumulator: HeadGradientAccumulator | None = None,
    ) -> LossOutput:
        """Compute a loss that is a sum over pairs, and its gradient, forming each tile of logits once.

        Args:
            batch: the pairs.
            loss_fn: called with a few neighbouring pairs at a time, inside the model's forward pass. What the policy
                is compared with must have been computed before.
            collision: whether ``loss_fn`` needs the collision log-probabilities.
            accumulator: shared by the chunks of a micro-batch; None for a batch in one piece.

        Returns:
            The loss, whose gradient can be computed once; detached log-probabilities; and the gradient of the loss
            with respect to them.
        """
        head = output_head(self.model)
        assert head is not None
        inputs = self._inputs(batch.on_host, batch.input_ids.device)
        values: list[Any] = []
        accumulator = HeadGradientAccumulator() if accumulator is None else accumulator

        def lm_head(hidden: Tensor) -> Tensor:
            linear = self._linear(head)
            fused = FusedInputs(linear, inputs.tokens, loss_fn, collision, accumulator)
            apply: Any = FusedLoss.apply
            loss, *values[:] = apply(inputs.select(hidden), linear.weight, linear.bias, fused)
            graded: Tensor = loss
            return graded

        with replaced_head(self.model, head, lm_head), self._balanced(inputs):
            loss = self.model(**inputs.arguments, use_cache=False)[GRADED].sum()
        log_probs, grad, collisions = values
        tokens = inputs.tokens
        logps = tokens.log_probs(TokenValues(log_probs, collisions), tokens.pairs)
        return LossOutput(loss, logps, tokens.unpack(grad, tokens.pairs))

    @contextmanager
    def _balanced(self, inputs: ModelInputs) -> Iterator[None]:
        """Keep the losses of the routers of a forward pass that records gradients."""
        if self.router is None or inputs.reads is None or not torch.is_grad_enabled():
            yield
            return
        with self.router.recorded() as logits:
            yield
        self._router_losses = self.router.losses(logits, inputs.reads, len(inputs.tokens.ends))

    def take_router_losses(self) -> Margin | None:
        """Return the load-balancing loss of each pair of the last batch that was read with gradients, once."""
        losses, self._router_losses = self._router_losses, None
        return losses

    def _logits(self, inputs: ModelInputs) -> Tensor:
        """Return the model's own logits at the scored tokens of padded rows."""
        width = inputs.arguments["input_ids"].shape[-1]
        row, column = inputs.positions // width, inputs.positions % width
        keep = width - int(column.min()) if len(column) else 1
        omits = "logits_to_keep" in inspect.signature(base_of(self.model).forward).parameters
        options = {"logits_to_keep": keep} if omits else {}
        with self._balanced(inputs):
            logits: Tensor = self.model(**inputs.arguments, use_cache=False, **options).logits
        return logits[row, column - (width - logits.shape[1])]

    def _linear(self, head: nn.Module) -> LinearHead:
        """Describe a linear head. Called inside the forward pass only, where sharded weights are whole."""
        return LinearHead(
            head.get_parameter("weight"), head._parameters["bias"], logit_rule(self.model), self._workspace
        )
