"""Truncation of pairs to a number of tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final

from typing_extensions import override

from lit_align.errors import DataError, check_range
from lit_align.types import TokenizedPair, TokenizedResponse

Ids: TypeAlias = list[int]
PromptSide: TypeAlias = Literal["left", "right"]
TruncationName: TypeAlias = Literal["cut", "cut_prompts", "drop"]


@dataclass(frozen=True)
class PromptIds:
    """Token ids of a prompt, split into the parts that truncation treats differently.

    Args:
        start: beginning-of-sequence token; kept.
        before: the part of the query x in front of the quality prompt.
        quality: the quality prompt; kept.
        after: the part of x after it.
        closing: what opens the response, if a cut from the right must keep it.
    """

    start: Ids
    before: Ids
    quality: Ids
    after: Ids
    closing: Ids = field(default_factory=list)

    @property
    def fixed(self) -> int:
        """Number of tokens that are never cut."""
        return len(self.start) + len(self.quality) + len(self.closing)

    @property
    def query(self) -> int:
        """Number of tokens of the query x."""
        return len(self.before) + len(self.after)

    def shortened(self, query: int, side: PromptSide) -> PromptIds:
        """Return the prompt with at most ``query`` tokens of x, cut from the given side."""
        if side == "right":
            return replace(self, before=self.before[:query], after=self.after[: max(0, query - len(self.before))])
        excess = max(0, self.query - query)
        inner = max(0, excess - len(self.before))
        return replace(self, before=self.before[excess:], after=self.after[inner:])

    def ids(self) -> Ids:
        """Return all tokens in order."""
        return [*self.start, *self.before, *self.quality, *self.after, *self.closing]


@dataclass(frozen=True)
class EncodedResponse:
    """Token ids of a response with its end token, and the positions that are not scored."""

    ids: Ids
    unscored: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, limit: int) -> TokenizedResponse:
        """Return the first ``limit`` tokens."""
        kept = self.ids[:limit]
        scored = [index not in self.unscored for index in range(len(kept))] if self.unscored else [True] * len(kept)
        return TokenizedResponse(kept, scored, truncated=len(kept) < len(self.ids))


@dataclass(frozen=True)
class EncodedPair:
    """A pair as token ids of any length. Each response that is present ends with its end token."""

    prompt: PromptIds
    chosen: EncodedResponse
    rejected: EncodedResponse
    prompted: PromptIds | None = None
    where: str = ""

    @property
    def fixed(self) -> int:
        """Number of tokens of the longer prompt that are never cut."""
        return max(prompt.fixed for prompt in self.prompts)

    @property
    def query(self) -> int:
        """Number of tokens of x."""
        return max(prompt.query for prompt in self.prompts)

    @property
    def response(self) -> int:
        """Number of tokens of the longer response."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def prompts(self) -> list[PromptIds]:
        """The prompt, and the prompted one if there is one."""
        return [self.prompt] if self.prompted is None else [self.prompt, self.prompted]


@dataclass(frozen=True)
class Truncation(ABC):
    """Interface for fitting pairs into a number of tokens.

    Args:
        max_length: maximum number of tokens of prompt and response together.
        max_response_length: maximum number of tokens of a response with its end token; None for no separate limit.
        min_response: tokens reserved for the longer response however long the prompt is; None for
            ``max_response_length`` or, without it, half of the room.
        prompt: side from which a prompt is cut; ``right`` keeps the end that opens the response.

    >>> Cut(max_length=100).of_response(fixed=0, query=30), Cut(max_length=100).of_response(fixed=0, query=300)
    (70, 50)
    """

    max_length: int
    max_response_length: int | None = None
    min_response: int | None = None
    prompt: PromptSide = "left"

    @property
    def keeps_closing(self) -> bool:
        """Whether the part of the prompt that opens the response must be known, because the cut is in front of it."""
        return self.prompt == "right"

    def of_response(self, fixed: int, query: int) -> int:
        """Return the maximum number of tokens of a response after a given prompt."""
        room = self.max_length - fixed
        reserved = self.min_response or self.max_response_length or room // 2
        return min(self.max_response_length or self.max_length, max(room - query, reserved))

    @abstractmethod
    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """Fit a pair into the limits; None drops it.

        Raises:
            DataError: no room is left for the prompt, nothing scored is left, or the responses became equal.
        """


@final
@dataclass(frozen=True)
class Cut(Truncation):
    """Cut responses at their end and prompts on one side, the same tokens of x with and without the quality prompt.

    Without other limits, prompt and response may each claim half of the room, and use what the other leaves. A
    response that was cut is marked and has no end token, so that nothing about its end is scored.

    >>> six, nine = EncodedResponse([6, 7, 8, 9]), EncodedResponse([6, 9])
    >>> cut = Cut(max_length=7)(EncodedPair(PromptIds([0], [], [], [1, 2, 3, 4, 5]), six, nine))
    >>> cut.prompt, cut.chosen.ids, cut.chosen.truncated, cut.rejected.ids
    ([0, 3, 4, 5], [6, 7, 8], True, [6, 9])
    """

    @override
    def __call__(self, pair: EncodedPair) -> TokenizedPair:
        return _cut(self, pair)


@final
@dataclass(frozen=True)
class CutPrompts(Truncation):
    """Cut prompts as ``Cut`` does, and drop pairs whose response would have to be cut."""

    @override
    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        return _cut(self, pair) if pair.response <= self.of_response(pair.fixed, pair.query) else None


@final
@dataclass(frozen=True)
class Drop(Truncation):
    """Drop pairs that do not fit, and cut nothing; ``min_response`` and ``prompt`` have no effect."""

    @override
    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        limit = self.max_response_length or self.max_length
        prompt, *prompted = (part.ids() for part in pair.prompts)
        if max(map(len, (prompt, *prompted))) + pair.response > self.max_length or pair.response > limit:
            return None
        return _tokenized(pair, limit, prompt, *prompted)


_TRUNCATIONS: Mapping[TruncationName, type[Truncation]] = {"cut": Cut, "cut_prompts": CutPrompts, "drop": Drop}


def make_truncation(
    name: TruncationName,
    max_length: int,
    max_response_length: int | None,
    min_response: int | None,
    truncate_prompt: PromptSide,
) -> Truncation:
    """Build the truncation from the settings of the data module.

    Args:
        name: ``data.truncation``.
        max_length: ``data.max_length``.
        max_response_length: ``data.max_response_length``.
        min_response: ``data.min_response``.
        truncate_prompt: ``data.truncate_prompt``.

    Raises:
        ValueError: a number is out of range, or would have no effect.
    """
    check_range("data.max_length", max_length, 4)
    check_range("data.max_response_length", max_response_length, 1, max_length - 1)
    check_range("data.min_response", min_response, 1, max_response_length or max_length - 1)
    if name == "drop" and (min_response is not None or truncate_prompt != "left"):
        raise ValueError("data.min_response and data.truncate_prompt have no effect with data.truncation drop")
    return _TRUNCATIONS[name](max_length, max_response_length, min_response, truncate_prompt)


def _cut(limits: Truncation, pair: EncodedPair) -> TokenizedPair:
    limit = limits.of_response(pair.fixed, pair.query)
    query = limits.max_length - pair.fixed - min(pair.response, limit)
    if limit < 1 or query < 1:
        raise DataError(
            pair.where,
            f"no room for the prompt: {pair.fixed} tokens that must stay and a response of "
            f"{min(pair.response, limit)} leave {query} of max_length {limits.max_length}",
        )
    return _tokenized(pair, limit, *(part.shortened(query, limits.prompt).ids() for part in pair.prompts))


def _tokenized(pair: EncodedPair, limit: int, prompt: Ids, prompted: Ids | None = None) -> TokenizedPair:
    """Cut both responses to a limit, and check what is left."""
    chosen, rejected = pair.chosen.cut(limit), pair.rejected.cut(limit)
    cut = " after truncation" if chosen.truncated or rejected.truncated else ""
    if chosen.ids and chosen.ids == rejected.ids:
        raise DataError(pair.where, f"chosen and rejected are the same {len(chosen.ids)} tokens{cut}")
    if any(side.ids and not any(side.scored) for side in (chosen, rejected)):
        raise DataError(pair.where, f"no scored token is left of a response{cut}")
    return TokenizedPair(prompt, chosen, rejected, prompted)
