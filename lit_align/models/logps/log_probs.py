"""The log-probabilities of a batch under one model, without padding, repeated prompts or whole logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from lit_align.models.lm_head.fused_loss import HeadSum, Job, Tokens, charge
from lit_align.models.lm_head.patch import (
    GRADED,
    base_of,
    is_linear,
    logit_rule,
    output_head,
    replaced_head,
    values_through,
)
from lit_align.models.lm_head.projection import Extras, Hidden, LogitRule, TokenValues, Workspace
from lit_align.models.lm_head.recompute import Head
from lit_align.models.logps.inputs import Reading
from lit_align.models.logps.packing import scored
from lit_align.models.logps.plain import ResponseLogProbs
from lit_align.models.logps.reader import ForwardPass, Reader
from lit_align.types import PairBatch, PairMask, PairTokens

LossOfPairs: TypeAlias = Callable[[slice, ResponseLogProbs], Tensor]
"""The summed, weighted loss of some pairs of a batch, from their log-probabilities."""


@dataclass(frozen=True)
class ChargedBatch:
    """The loss of a batch with its graph, and the log-probabilities that it was formed from, without.

    Args:
        loss: the sum over all pairs.
        log_probs: detached.
    """

    loss: Tensor
    log_probs: ResponseLogProbs


@final
class TokenLogProbs(Reader):
    """Gives the log-probabilities of batches of pairs under one model.

    The model is called through its own forward, so what hangs on it (sharding, adapters, hooks) works as ever.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        how: see the base class.
        workspace: the memory of a tile; None for its own.
    """

    def __init__(self, model: nn.Module, how: ForwardPass = ForwardPass(), workspace: Workspace | None = None) -> None:
        super().__init__(model, how)
        self._workspace = Workspace(how.tile_mb) if workspace is None else workspace

    @property
    def lacks(self) -> str | None:
        """See the base class."""
        return None if output_head(self.model) is not None else "the model does not say which layer gives its logits"

    def probed(self, batch: PairBatch) -> PairTokens:
        """The log-probabilities."""
        return self(batch).values

    def __call__(self, batch: PairBatch, extras: Extras = Extras()) -> ResponseLogProbs:
        """Log-probabilities of the scored tokens with gradient, for a loss of any kind.

        Args:
            batch: the pairs; one side or both.
            extras: what else is wanted.
        """
        reading = self._read(batch)
        head = None if self.layout == "plain" else output_head(self.model)
        if head is None:
            asked = (self._own_logits(reading), reading.tokens.targets, extras)
            return self._responses(batch, values_through(nn.Identity(), LogitRule(), self._workspace, asked))
        values = self._by_head(head)

        def compute(hidden: Tensor) -> dict[str, Tensor]:
            found = _named(values(_at(hidden, reading), reading.tokens, extras))
            return {GRADED: found.pop("log_probs"), **found}

        given = self._call(head, reading, compute)
        return self._responses(batch, TokenValues(given.pop(GRADED).flatten(), **given))

    def charge(
        self, batch: PairBatch, loss_of: LossOfPairs, extras: Extras = Extras(), head_sum: HeadSum | None = None
    ) -> ChargedBatch:
        """A loss that is a sum over pairs, its logits formed once; its gradient can be asked for once.

        Args:
            batch: the pairs.
            loss_of: the loss of some of them; called with a few neighbouring pairs at a time, inside the model's
                forward pass, so that what it compares with must be known before.
            extras: what else ``loss_of`` is to be told.
            head_sum: of all portions of one step; None for a batch that is no portion.
        """
        head = output_head(self.model)
        if self.layout == "plain" or head is None or not is_linear(head) or not torch.is_grad_enabled():
            found = self(batch, extras)
            return ChargedBatch(
                loss_of(slice(0, len(batch.index)), found), replace(found, values=found.values.detach())
            )
        reading, mask, width = self._read(batch), scored(batch), int(batch.lengths.max())
        linear, head_sum = self._linear(head), head_sum or HeadSum()

        def loss_of_tokens(pairs: slice, found: TokenValues) -> Tensor:
            return loss_of(pairs, _to_the_left(found, mask[pairs], width))

        def compute(hidden: Tensor) -> dict[str, Tensor]:
            job = Job(reading.tokens, loss_of_tokens, extras, head_sum)
            charged = charge(linear(), _at(hidden, reading), job)
            return {GRADED: charged.loss, **_named(charged.values)}

        given = self._call(head, reading, compute)
        loss = given.pop(GRADED).sum()
        return ChargedBatch(loss, self._responses(batch, TokenValues(**given)))

    def _call(
        self, head: nn.Module, reading: Reading, compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        with replaced_head(self.model, head, compute):
            found: dict[str, Tensor] = self.model(**reading.inputs, use_cache=False)
        return found

    def _own_logits(self, reading: Reading) -> Tensor:
        """The model's own logits at the scored tokens of padded rows; it forms none of what all rows begin with."""
        width = reading.inputs["input_ids"].shape[-1]
        row, column = reading.places // width, reading.places % width
        behind = width - int(column.min()) if len(column) else 1
        omits = "logits_to_keep" in inspect.signature(base_of(self.model).forward).parameters
        kept = {"logits_to_keep": behind} if omits else {}
        logits: Tensor = self.model(**reading.inputs, use_cache=False, **kept).logits
        return logits[row, column - (width - logits.shape[1])]

    def _by_head(self, head: nn.Module) -> Callable[[Hidden, Tokens, Extras], TokenValues]:
        """Log-probabilities by a head, which is looked at inside the forward pass only."""
        if is_linear(head):
            linear = self._linear(head)
            return lambda hidden, tokens, extras: linear().values(hidden, tokens.targets, extras)
        forward, rule = head.forward, logit_rule(self.model)

        def values(hidden: Hidden, tokens: Tokens, extras: Extras) -> TokenValues:
            return values_through(forward, rule, self._workspace, (hidden, tokens.targets, extras))

        return values

    def _linear(self, head: nn.Module) -> Callable[[], Head]:
        """The head's weights as they are when they are asked for: sharded ones are whole in the forward pass only."""
        rule = logit_rule(self.model)

        def linear() -> Head:
            weight, bias = head.get_parameter("weight"), head._parameters["bias"]
            return Head(weight, bias, rule, self._workspace)

        return linear

    @staticmethod
    def _responses(batch: PairBatch, found: TokenValues) -> ResponseLogProbs:
        return _to_the_left(found, scored(batch), int(batch.lengths.max()))


def _at(hidden: Tensor, reading: Reading) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, reading.places)


def _named(values: TokenValues) -> dict[str, Tensor]:
    return {name: value for name, value in vars(values).items() if value is not None}


def _to_the_left(found: TokenValues, mask: PairMask, width: int) -> ResponseLogProbs:
    """Values of tokens as ``[pair, side, token]``, packed to the left.

    >>> mask = torch.tensor([[[False, True, False, True], [False, True, False, False]]])
    >>> _to_the_left(TokenValues(torch.tensor([-1.0, -2.0, -3.0])), mask, 2).values.tolist()
    [[[-1.0, -2.0], [-3.0, 0.0]]]
    """
    rows = mask.flatten(0, 1)
    row, _ = place = rows.nonzero(as_tuple=True)
    column = rows.cumsum(-1)[place] - 1

    def spread(values: Tensor) -> Tensor:
        out = values.new_zeros(len(rows), width).index_put((row, column), values)
        return out.view(*mask.shape[:2], width)

    extras = {name: spread(value) for name, value in _named(found).items()}
    return ResponseLogProbs(extras.pop("log_probs"), **extras)
