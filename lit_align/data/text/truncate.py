"""Truncation makes a pair fit into a number of tokens; it happens here and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final

from lit_align.errors import DataError
from lit_align.types import TokenizedPair, TokenizedResponse

Ids: TypeAlias = list[int]
PromptSide: TypeAlias = Literal["left", "right"]


@dataclass(frozen=True)
class PromptIds:
    """Ids of a prompt in the parts that a cut treats differently.

    Args:
        start: beginning of sequence; stays.
        before: what of the query x stands before the quality prompt.
        quality: the quality prompt; stays.
        after: what of x stands behind it.
        closing: what opens the response where a cut from the right must leave it; stays.
    """

    start: Ids
    before: Ids
    quality: Ids
    after: Ids
    closing: Ids = field(default_factory=list)

    @property
    def fixed(self) -> int:
        """Tokens that no cut may take."""
        return len(self.start) + len(self.quality) + len(self.closing)

    @property
    def query(self) -> int:
        """Tokens of the query x."""
        return len(self.before) + len(self.after)

    def shortened(self, query: int, side: PromptSide) -> PromptIds:
        """The prompt with ``query`` tokens of x at most, cut from the given side."""
        if side == "right":
            return replace(self, before=self.before[:query], after=self.after[: max(0, query - len(self.before))])
        excess = max(0, self.query - query)
        inner = max(0, excess - len(self.before))
        return replace(self, before=self.before[excess:], after=self.after[inner:])

    def ids(self) -> Ids:
        """All tokens in order."""
        return [*self.start, *self.before, *self.quality, *self.after, *self.closing]


@dataclass(frozen=True)
class EncodedResponse:
    """Ids of a response, end token included, and the places in it that are not scored."""

    ids: Ids
    unscored: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, limit: int) -> TokenizedResponse:
        """The first ``limit`` tokens."""
        kept = self.ids[:limit]
        scored = [place not in self.unscored for place in range(len(kept))] if self.unscored else [True] * len(kept)
        return TokenizedResponse(kept, scored, truncated=len(kept) < len(self.ids))


@dataclass(frozen=True)
class EncodedPair:
    """A pair as ids of any length; both responses end in their end token, if they are there."""

    prompt: PromptIds
    chosen: EncodedResponse
    rejected: EncodedResponse
    prompted: PromptIds | None = None
    where: str = ""

    @property
    def fixed(self) -> int:
        """Tokens of the longer prompt that no cut may take."""
        return max(prompt.fixed for prompt in self.prompts)

    @property
    def query(self) -> int:
        """Tokens of x."""
        return max(prompt.query for prompt in self.prompts)

    @property
    def response(self) -> int:
        """Tokens of the longer response."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def prompts(self) -> list[PromptIds]:
        """The prompt, and the one with the quality prompt in it if there is one."""
        return [self.prompt] if self.prompted is None else [self.prompt, self.prompted]


@dataclass(frozen=True)
class Truncation(ABC):
    """How pairs are made to fit into a number of tokens.

    Args:
        max_length: tokens of prompt and response together.
        max_response_length: tokens of a response, end token included; None for no limit of its own.
        min_response: tokens that are kept for the longer response however long the prompt; None for
            ``max_response_length`` or, without it, half of the room.
        prompt: the side that a prompt is cut from; ``right`` leaves the end that opens the response.

    >>> Cut(max_length=100).of_response(fixed=0, query=30), Cut(max_length=100).of_response(fixed=0, query=300)
    (70, 50)
    """

    max_length: int
    max_response_length: int | None = None
    min_response: int | None = None
    prompt: PromptSide = "left"

    @property
    def keeps_closing(self) -> bool:
        """Whether what opens the response must be told apart, because the prompt's end is cut in front of it."""
        return self.prompt == "right"

    def of_response(self, fixed: int, query: int) -> int:
        """Tokens that a response may have beside a prompt.

        Args:
            fixed: tokens of the prompt that no cut may take.
            query: the others.
        """
        room = self.max_length - fixed
        reserved = self.min_response or self.max_response_length or room // 2
        return min(self.max_response_length or self.max_length, max(room - query, reserved))

    @abstractmethod
    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """The pair within the limits; None if it is to be left out.

        Raises:
            DataError: no room is left for the prompt, nothing scored is left, or the two responses became the same.
        """


@final
@dataclass(frozen=True)
class Cut(Truncation):
    """Cuts responses on the right and prompts on one side, the same tokens of x with and without the quality prompt.

    Where no limit says otherwise, prompt and response are owed half of the room each, and one may use what the other
    leaves. A response that was cut carries no end token, so nothing about its end is scored, and is marked.

    >>> six, nine = EncodedResponse([6, 7, 8, 9]), EncodedResponse([6, 9])
    >>> cut = Cut(max_length=7)(EncodedPair(PromptIds([0], [], [], [1, 2, 3, 4, 5]), six, nine))
    >>> cut.prompt, cut.chosen.ids, cut.chosen.truncated, cut.rejected.ids
    ([0, 3, 4, 5], [6, 7, 8], True, [6, 9])
    """

    def __call__(self, pair: EncodedPair) -> TokenizedPair:
        """See the base class."""
        return _cut(self, pair)


@final
@dataclass(frozen=True)
class CutPrompts(Truncation):
    """Cuts prompts as ``Cut`` does, and leaves out pairs with a response that would have to be cut."""

    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """See the base class."""
        return _cut(self, pair) if pair.response <= self.of_response(pair.fixed, pair.query) else None


@final
@dataclass(frozen=True)
class Drop(Truncation):
    """Leaves out pairs that do not fit, and cuts nothing; ``min_response`` and ``prompt`` have no effect."""

    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """See the base class."""
        limit = self.max_response_length or self.max_length
        longest = max(len(prompt.ids()) for prompt in pair.prompts)
        if longest + pair.response > self.max_length or pair.response > limit:
            return None
        return _tokenized(pair, pair.prompt.ids(), limit, pair.prompted.ids() if pair.prompted is not None else None)


def _cut(to: Truncation, pair: EncodedPair) -> TokenizedPair:
    limit = to.of_response(pair.fixed, pair.query)
    query = to.max_length - pair.fixed - min(pair.response, limit)
    if limit < 1 or query < 1:
        raise DataError(
            pair.where,
            f"no room for the prompt: {pair.fixed} tokens that must stay and a response of "
            f"{min(pair.response, limit)} leave {query} of max_length {to.max_length}",
        )
    prompt, *prompted = (part.shortened(query, to.prompt).ids() for part in pair.prompts)
    return _tokenized(pair, prompt, limit, prompted[0] if prompted else None)


def _tokenized(pair: EncodedPair, prompt: Ids, limit: int, prompted: Ids | None) -> TokenizedPair:
    """The pair with both responses within a limit, checked."""
    chosen, rejected = pair.chosen.cut(limit), pair.rejected.cut(limit)
    cut = " after truncation" if chosen.truncated or rejected.truncated else ""
    if chosen.ids and chosen.ids == rejected.ids:
        raise DataError(pair.where, f"chosen and rejected are the same {len(chosen.ids)} tokens{cut}")
    if any(side.ids and not any(side.scored) for side in (chosen, rejected)):
        raise DataError(pair.where, f"no scored token is left of a response{cut}")
    return TokenizedPair(prompt, chosen, rejected, prompted)
