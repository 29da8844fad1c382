"""The records that pass between the layers of lit_align, and the words for their axes.

Axes, always in this order:

===========  ========================================================================================
``pair``     one prompt with its two responses; any slice of this axis is itself a batch
``2``        the side: 0 is chosen, 1 is rejected
``rollout``  one response that the policy sampled
``token``    scored response tokens, packed to the left (end-of-sequence included); in a ``PairBatch``,
             whole sequences (prompt and response), padded on the right
===========  ========================================================================================

Log-probabilities, margins and offsets are in nats; the inverse temperature β is not in them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, TypeAlias, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PairTokens: TypeAlias = Float[Tensor, "pair side token"]
"""A value per scored token of each response."""
PairMask: TypeAlias = Bool[Tensor, "pair side token"]
"""True on scored response tokens."""
PairScores: TypeAlias = Float[Tensor, "pair side"]
"""A value per response."""
Margin: TypeAlias = Float[Tensor, " pair"]
"""A value per pair: margins and offsets in nats, or losses."""
PairSeed: TypeAlias = Int[Tensor, " pair"]
"""A number per pair that random choices are made from, so that they do not depend on the batch."""
RolloutTokens: TypeAlias = Float[Tensor, "rollout token"]
"""A value per token of each response that the policy sampled."""
RolloutMask: TypeAlias = Bool[Tensor, "rollout token"]
"""True on the tokens of each response, its end token included."""
RolloutScores: TypeAlias = Float[Tensor, " rollout"]
"""A value per response that the policy sampled."""

Message: TypeAlias = Mapping[str, Any]
Text: TypeAlias = str | tuple[Message, ...]
"""Plain text, or the messages of a conversation."""

RecordT = TypeVar("RecordT")


def map_tensors(record: RecordT, function: Callable[[Tensor], Any]) -> RecordT:
    """Apply a function to every tensor of a record, including those of nested records and mappings."""
    mapped: Any = record
    if isinstance(record, Tensor):
        mapped = function(record)
    elif isinstance(record, Mapping):
        mapped = {name: map_tensors(value, function) for name, value in record.items()}
    elif is_dataclass(record) and not isinstance(record, type):
        mapped = replace(record, **{f.name: map_tensors(getattr(record, f.name), function) for f in fields(record)})
    return cast(RecordT, mapped)


def concatenate(records: Sequence[RecordT]) -> RecordT:
    """Concatenate records along the axis of pairs."""
    first: Any = records[0]
    joined: Any = first
    if isinstance(first, Tensor):
        joined = torch.cat(cast(list[Tensor], list(records)))
    elif isinstance(first, Mapping):
        joined = {name: concatenate([cast(Any, record)[name] for record in records]) for name in first}
    elif is_dataclass(first) and not isinstance(first, type):
        joined = replace(first, **{f.name: concatenate([getattr(r, f.name) for r in records]) for f in fields(first)})
    return cast(RecordT, joined)


@dataclass(frozen=True)
class PreferencePair:
    """One row of preference data as text, before any tokenizer.

    Args:
        prompt: what the model is asked: text, or messages that end before the response.
        chosen: the preferred response: text, or the messages that follow the prompt; None in unpaired data.
        rejected: the other response, of the same kind as ``chosen``; None in unpaired data. Both are None
            where there are prompts alone.
        where: where the row stands (``file:line``), for messages.
        extra: the row's other columns, kept for ``predict``.
        tools: what a conversation's template is told of tools, as JSON schemas.
        weight: how much the pair counts, above 0.
        margin: by how much the chosen response should win, 0 or more; None where the row does not say.
        preference_probability: how sure the preference is, 0 to 1; None where the row does not say.
        scores: what somebody scored chosen and rejected with; NaN for a side without a score.
        source: number of the source that the row is from.
    """

    prompt: Text
    chosen: Text | None
    rejected: Text | None
    where: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    weight: float = 1.0
    margin: float | None = None
    preference_probability: float | None = None
    scores: tuple[float, float] | None = None
    source: int = 0


@dataclass(frozen=True)
class TokenizedResponse:
    """Token ids of one response and which of them are scored."""

    ids: Sequence[int]
    scored: Sequence[bool]
    truncated: bool = False

    @property
    def length(self) -> int:
        """Number of scored tokens."""
        return sum(self.scored)


@dataclass(frozen=True)
class TokenizedPair:
    """One pair as token ids: one prompt, two responses that were encoded apart from it.

    Args:
        prompt: ids of the prompt, beginning-of-sequence token included where the tokenizer uses one.
        chosen: the preferred response.
        rejected: the other one.
        prompted: ids of the prompt with the quality prompt in it (p ⊕ x), for self-refinement.
        index: position of the row in its data set.
        weight: how much the pair counts.
        margin: as in ``PreferencePair``.
        preference_probability: as in ``PreferencePair``.
        mismatched: chosen and rejected response of another row, short enough to stand behind this row's prompt.
    """

    prompt: Sequence[int]
    chosen: TokenizedResponse
    rejected: TokenizedResponse
    prompted: Sequence[int] | None = None
    index: int = 0
    weight: float = 1.0
    margin: float | None = None
    preference_probability: float | None = None
    mismatched: tuple[TokenizedResponse, TokenizedResponse] | None = None

    @property
    def sides(self) -> tuple[TokenizedResponse, TokenizedResponse]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs as tensors, padded on the right.

    Args:
        input_ids: prompt and response of each side.
        attention_mask: true on tokens, false on padding.
        mask: true on scored response tokens.
        truncated: true for a response that was cut.
        weight: the row's own weight, 1 unless the data says otherwise; 0 for a copy that only fills up a batch.
        index: position of each row in its data set.
        prompted: the same responses under p ⊕ x, for self-refinement.
        mismatched: the same prompts with the responses of other rows, for objectives that estimate a divergence.
        margin: by how much chosen should win, where the data says it of any row; 0 for the others.
        preference_probability: how sure each preference is, where the data says it of any row; 1 for the others.
        packing: what a model reads of the whole batch, computed ahead by a loader's worker; see `pack_ahead`.
        host: the same batch in CPU memory, kept when it is moved to a device: what depends on lengths is computed
            there, where no number has to be waited for.
    """

    input_ids: Int[Tensor, "pair side token"]
    attention_mask: Bool[Tensor, "pair side token"]
    mask: Bool[Tensor, "pair side token"]
    truncated: Bool[Tensor, "pair side"]
    weight: Float[Tensor, " pair"]
    index: Int[Tensor, " pair"]
    prompted: PairBatch | None = None
    mismatched: PairBatch | None = None
    margin: Float[Tensor, " pair"] | None = None
    preference_probability: Float[Tensor, " pair"] | None = None
    packing: Any = None
    host: PairBatch | None = None

    @property
    def on_host(self) -> PairBatch:
        """The batch in CPU memory; the batch itself where it has not been moved from there."""
        return self if self.host is None else self.host

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PairBatch:
        """Move the batch to another device; the copy in CPU memory, and what was computed ahead, stay there."""
        if self.host is not None and torch.device(device).type == "cpu":
            return self.host
        nested = {name: part.to(device, non_blocking) for name, part in self._nested().items()}
        alone = replace(self, prompted=None, mismatched=None, packing=None, host=None)
        moved = map_tensors(alone, lambda part: part.to(device, non_blocking=non_blocking))
        host = self.on_host if self.on_host.input_ids.device.type == "cpu" else None
        return replace(moved, **nested, host=None if moved.input_ids.device.type == "cpu" else host)

    def _nested(self) -> dict[str, Any]:
        return {name: part for name in ("prompted", "mismatched") if (part := getattr(self, name)) is not None}

    def pin_memory(self) -> PairBatch:
        """Copy the batch into page-locked memory."""
        return map_tensors(self, lambda part: part.pin_memory())

    def rows(self, which: slice | Tensor) -> PairBatch:
        """Select rows, without the columns that are padding in all of them; places are best in CPU memory."""
        if self.host is not None and isinstance(which, Tensor):  # no number is waited for
            return self.host.rows(which.cpu()).to(self.input_ids.device, non_blocking=True)
        nested = {name: part.rows(which) for name, part in self._nested().items()}
        alone = replace(self, prompted=None, mismatched=None, packing=None, host=None)
        rows = replace(map_tensors(alone, lambda part: part[which]), **nested)
        if self.host is None:
            used = rows.attention_mask.flatten(0, 1).any(0).nonzero()
            end = int(used[-1]) + 1 if len(used) else rows.input_ids.shape[-1]
        else:
            host = self.host.rows(which)
            rows, end = replace(rows, host=host), host.input_ids.shape[-1]
        if end == rows.input_ids.shape[-1]:
            return rows
        wide = ("input_ids", "attention_mask", "mask")
        return replace(rows, **{name: getattr(rows, name)[..., :end] for name in wide})

    def chosen_side(self) -> PairBatch:
        """Return the batch without its rejected side, for objectives that never look at it."""
        sides = {name: getattr(self, name)[:, :1] for name in ("input_ids", "attention_mask", "mask", "truncated")}
        nested = {name: part.chosen_side() for name, part in self._nested().items()}
        host = None if self.host is None else self.host.chosen_side()
        return replace(self, **sides, **nested, packing=None, host=host)

    @property
    def lengths(self) -> Int[Tensor, "pair side"]:
        """Scored tokens of each response."""
        return self.mask.sum(-1)


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities of the scored response tokens, in float32, packed to the left.

    Args:
        policy: log π(y_t | x, y_<t) under the policy; carries the gradient.
        reference: the same under the frozen reference; None for objectives that need none.
        mask: true on scored tokens; the values elsewhere are zero.
        prompted: the same responses under p ⊕ x, without gradient, for self-refinement.
        mismatched: other rows' responses to the same prompts, without gradient; None unless the objective needs them.
        collision: log Σ_v π(v | x, y_<t)² of the policy at each scored token, without gradient; None unless needed.
        pair_seed: a number per pair that changes each time the pair is seen, for averagings that sample tokens.
        margin: as in ``PairBatch``, for objectives whose loss it changes.
        preference_probability: as in ``PairBatch``, for objectives whose loss it changes.
        state: the objective state, numbers that it carries from step to step, by name.
    """

    policy: PairTokens
    reference: PairTokens | None
    mask: PairMask
    prompted: PairLogProbs | None = None
    mismatched: PairLogProbs | None = None
    collision: PairTokens | None = None
    pair_seed: PairSeed | None = None
    margin: Margin | None = None
    preference_probability: Margin | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict, hash=False)

    def rows(self, pairs: slice) -> PairLogProbs:
        """Select pairs."""
        return replace(map_tensors(replace(self, state={}), lambda part: part[pairs]), state=self.state)

    @property
    def lengths(self) -> Float[Tensor, "pair side"]:
        """Scored tokens of each response, in the dtype of the log-probabilities."""
        return self.mask.sum(-1).to(self.policy.dtype)


@dataclass(frozen=True)
class Outcome:
    """What an objective made of a batch; everything that is reported is read from here.

    Args:
        loss: loss of each pair; carries the gradient.
        rewards: β × log-ratio of each response at the scale that is optimised, detached.
        margin: chosen minus rejected log-ratio in nats, detached; None where no margin is formed.
        offset: what the refinement subtracted from the margin, in nats, detached.
        prompted_margin: the margin under the quality prompt, detached; None without self-refinement.
        terms: where the loss is a weighted sum, the loss of each term by its name, before its weight, detached.
        observed: what each pair says of the objective state, by name, detached.
    """

    loss: Margin
    rewards: PairScores
    margin: Margin | None = None
    offset: Margin | None = None
    prompted_margin: Margin | None = None
    terms: Mapping[str, Margin] = field(default_factory=dict)
    observed: Mapping[str, Margin] = field(default_factory=dict)


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, and what its metrics are computed from.

    Args:
        loss: the weighted sum of the losses of all pairs, with its graph.
        logps: the log-probabilities that it was computed from, detached.
        grad_logps: gradient of ``loss`` with respect to ``logps.policy``.
        outcome: what the objective returned for all pairs, detached; None from a loss that is not an objective's.
    """

    loss: Tensor
    logps: PairLogProbs
    grad_logps: PairTokens
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Rollout:
    """Responses that the policy sampled, and all that was known of them before it was changed; no gradients.

    Args:
        policy: log π(y_t | x, y_<t) under the policy that sampled them, in nats, packed to the left.
        mask: true on the tokens of each response, the end token included; the values elsewhere do not matter.
        score: what the response was scored with, as it came.
        group: number of the prompt; responses to one prompt have the same.
        weight: 1, or 0 for a copy that only fills up a batch.
        reference: the log-probabilities under the frozen reference; None where nothing needs them.
        values: what the value model expects from each token on, this token's reward included; None without one.
        greedy: score of the most likely response to the same prompt; None where nothing needs it.
    """

    policy: RolloutTokens
    mask: RolloutMask
    score: RolloutScores
    group: Int[Tensor, " rollout"]
    weight: RolloutScores
    reference: RolloutTokens | None = None
    values: RolloutTokens | None = None
    greedy: RolloutScores | None = None

    def rows(self, which: Tensor | slice) -> Rollout:
        """Select responses."""
        return map_tensors(self, lambda part: part[which])


class ResponseScore(ABC):
    """A known score of a response, for worlds (or judges) that have one."""

    @abstractmethod
    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Return one finite number for each response; higher is better."""
