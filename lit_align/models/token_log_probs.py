"""The log-probabilities of a batch under one model, without padding, repeated prompts or whole logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lit_align.models.layout import LayoutName, needed, scored
from lit_align.models.log_probs import ResponseLogProbs
from lit_align.models.one_pass import Tokens, charge
from lit_align.models.output_head import (
    GRADED,
    base_of,
    is_linear,
    logit_rule,
    output_head,
    replaced_head,
    values_through,
)
from lit_align.models.reading import PACKED_ATTENTION, Attention, Reading, packed, padded
from lit_align.models.segments import NAME, original_attention, stands_in_for
from lit_align.models.two_pass import Head
from lit_align.models.vocabulary import Extras, Hidden, LogitRule, TokenValues, Workspace
from lit_align.types import PairBatch, PairMask

CPU_TOKENS = 1024
"""Tokens at once on a CPU: enough to fill its cores, few enough to keep what backward needs in its caches."""


@dataclass(frozen=True)
class ForwardPass:
    """How log-probabilities are computed; nothing here changes them beyond rounding.

    Args:
        layout: ``shared`` reads a prompt once for both responses, ``packed`` each sequence by itself, both without
            padding; ``padded`` reads padded rows. ``auto`` takes the first of these that gives the model's own
            log-probabilities, which is tried on the first batch.
        tile_mb: megabytes of logits that are held at once.
        row_tokens: tokens of a row where packed rows need a dense mask, which grows with their square; 0 takes
            rows as long as the longest pair.
        tokens_at_once: tokens, of both sides, that go through the policy at once in training; a batch with more is
            taken in portions whose gradients add up, so that its size does not set the memory. 0 for no limit; None
            for 1024 on a CPU, where more at once is no faster, and for no limit on other devices, nor where the
            objective would have to read its pairs twice for it.
        compile: compile the layers of every model that is read (``torch.compile``). The first steps then take a
            minute or more; it pays on a GPU, in long runs.
    """

    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    tile_mb: float = 64.0
    row_tokens: int = 0
    tokens_at_once: int | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if not self.tile_mb > 0:
            raise ValueError(f"ForwardPass: tile_mb is {self.tile_mb}; expected a size above 0")
        for name in ("row_tokens", "tokens_at_once"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"ForwardPass: {name} is {getattr(self, name)}; expected 0 or more")

    def portion(self, device: str, across_pairs: bool) -> int:
        """Tokens that go through the policy at once in training; 0 for no limit.

        Args:
            device: type of the device.
            across_pairs: whether pairs depend on each other.

        >>> ForwardPass().portion("cpu", across_pairs=False)
        1024
        """
        if self.tokens_at_once is not None:
            return self.tokens_at_once
        return CPU_TOKENS if device == "cpu" and not across_pairs else 0


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


class TokenLogProbs:
    """Gives the log-probabilities of batches of pairs under one model.

    The model is called through its own forward, so what hangs on it (sharding, adapters, hooks) works as ever.

    Args:
        model: a causal language model of transformers, with or without an adapter.
        how: layout and sizes. ``auto`` stays with padded rows until ``choose_layout`` has found a faster layout.
    """

    def __init__(self, model: nn.Module, how: ForwardPass = ForwardPass()) -> None:
        self.model = model
        self.how = how
        self.layout: LayoutName = "padded"
        self.reach: int | None = None
        self._attention = original_attention(model)
        self._workspace = Workspace(how.tile_mb)
        if how.layout != "auto":
            self.use(how.layout)

    def use(self, layout: LayoutName, reach: int | None = None) -> None:
        """Take a layout from here on.

        Args:
            layout: which.
            reach: a batch with a longer sequence is padded; None for no such limit.
        """
        if layout in ("shared", "packed") and stands_in_for(self.model, self._attention):
            base_of(self.model).set_attn_implementation(NAME)
        elif layout in ("padded", "plain") and base_of(self.model).config._attn_implementation == NAME:
            base_of(self.model).set_attn_implementation(self._attention)
        self.layout, self.reach = layout, reach

    def __call__(self, batch: PairBatch, extras: Extras = Extras()) -> ResponseLogProbs:
        """Log-probabilities of the scored tokens with gradient, for a loss of any kind.

        Args:
            batch: the pairs; one side or both.
            extras: what else is wanted.
        """
        reading = self._read(batch)
        head = None if self.layout == "plain" else output_head(self.model)
        if head is None:
            logits: Tensor = self.model(**reading.inputs, use_cache=False).logits
            asked = (_at(logits, reading), reading.tokens.targets, extras)
            return self._responses(batch, values_through(nn.Identity(), LogitRule(), self._workspace, asked))
        values = self._by_head(head)

        def compute(hidden: Tensor) -> dict[str, Tensor]:
            found = _named(values(_at(hidden, reading), reading.tokens, extras))
            return {GRADED: found.pop("log_probs"), **found}

        given = self._call(head, reading, compute)
        return self._responses(batch, TokenValues(given.pop(GRADED).flatten(), **given))

    def charge(self, batch: PairBatch, loss_of: LossOfPairs, extras: Extras = Extras()) -> ChargedBatch:
        """A loss that is a sum over pairs, its logits formed once; its gradient can be asked for once.

        Args:
            batch: the pairs.
            loss_of: the loss of some of them; called with a few neighbouring pairs at a time, inside the model's
                forward pass, so that what it compares with must be known before.
            extras: what else ``loss_of`` is to be told.
        """
        head = output_head(self.model)
        if self.layout == "plain" or head is None or not is_linear(head) or not torch.is_grad_enabled():
            found = self(batch, extras)
            return ChargedBatch(
                loss_of(slice(0, len(batch.index)), found), replace(found, values=found.values.detach())
            )
        reading, mask, width = self._read(batch), scored(batch), int(batch.lengths.max())
        linear = self._linear(head)

        def loss_of_tokens(pairs: slice, found: TokenValues) -> Tensor:
            return loss_of(pairs, _to_the_left(found, mask[pairs], width))

        def compute(hidden: Tensor) -> dict[str, Tensor]:
            charged = charge(linear(), _at(hidden, reading), reading.tokens, loss_of_tokens, extras)
            return {GRADED: charged.loss, **_named(charged.values)}

        given = self._call(head, reading, compute)
        loss = given.pop(GRADED).sum()
        return ChargedBatch(loss, self._responses(batch, TokenValues(**given)))

    def _read(self, batch: PairBatch) -> Reading:
        """The batch in the layout that is in use, or padded where that layout does not reach."""
        longest = int(needed(batch).max())
        packs = self.layout in ("shared", "packed") and longest > 0
        name = base_of(self.model).config._attn_implementation
        if not packs or name not in PACKED_ATTENTION or (self.reach is not None and longest > self.reach):
            return padded(batch)
        dtype = next(self.model.parameters()).dtype
        return packed(batch, Attention(name, dtype, self.how.row_tokens), share=self.layout == "shared")

    def _call(
        self, head: nn.Module, reading: Reading, compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        with replaced_head(self.model, head, compute):
            found: dict[str, Tensor] = self.model(**reading.inputs, use_cache=False)
        return found

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
