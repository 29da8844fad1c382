"""Truncation makes a pair fit into a number of tokens; it happens here and nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

from lit_align.data.errors import DataError
from lit_align.types import TokenizedPair, TokenizedResponse

Ids = list[int]


@dataclass(frozen=True)
class PromptIds:
    """Ids of a prompt in the parts that a cut treats differently.

    Args:
        start: beginning of sequence; stays.
        before: what stands before the quality prompt; goes first, from the left.
        quality: the quality prompt; stays.
        after: the rest of the prompt; goes last, from the left.
    """

    start: Ids
    before: Ids
    quality: Ids
    after: Ids

    @property
    def fixed(self) -> int:
        """Tokens that no cut may take."""
        return len(self.start) + len(self.quality)

    @property
    def query(self) -> int:
        """Tokens of the query x."""
        return len(self.before) + len(self.after)

    def keep(self, query: int) -> PromptIds:
        """The prompt with the last ``query`` tokens of x."""
        excess = max(0, self.query - query)
        inner = max(0, excess - len(self.before))
        return replace(self, before=self.before[excess:], after=self.after[inner:])

    def ids(self) -> Ids:
        """All tokens in order."""
        return [*self.start, *self.before, *self.quality, *self.after]


@dataclass(frozen=True)
class EncodedPair:
    """A pair as ids of any length; both responses end in their end token."""

    prompt: PromptIds
    chosen: Ids
    rejected: Ids
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


class Truncation(ABC):
    """How pairs are made to fit."""

    @abstractmethod
    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """The pair within the limits; None if it is to be left out.

        Raises:
            DataError: no room is left for the prompt, or the two responses became the same.
        """


@final
@dataclass(frozen=True)
class Cut(Truncation):
    """Cuts responses on the right and prompts on the left, the same tokens of x with and without the quality prompt.

    Where a limit on responses is not set, prompt and response are owed half of the room each, and one may use what the
    other leaves. A response that was cut carries no end token and is marked.

    Args:
        max_length: tokens of prompt and response together.
        max_response_length: tokens of a response, end token included; None for the rule above.

    >>> pair = EncodedPair(PromptIds([0], [], [], [1, 2, 3, 4, 5]), [6, 7, 8, 9], [6, 9])
    >>> cut = Cut(max_length=7)(pair)
    >>> cut.prompt, cut.chosen.ids, cut.chosen.truncated, cut.rejected.ids
    ([0, 3, 4, 5], [6, 7, 8], True, [6, 9])
    """

    max_length: int
    max_response_length: int | None = None

    def __call__(self, pair: EncodedPair) -> TokenizedPair:
        """See the base class."""
        room = self.max_length - pair.fixed
        limit = self.max_response_length or max(room - pair.query, room // 2)
        query = room - min(pair.response, limit)
        if limit < 1 or query < 1:
            raise DataError(
                pair.where,
                f"no room for the prompt: {pair.fixed} tokens that must stay and a response of "
                f"{min(pair.response, limit)} leave {query} of max_length {self.max_length}",
            )
        return _tokenized(
            pair.where,
            pair.prompt.keep(query).ids(),
            _cut(pair.chosen, limit),
            _cut(pair.rejected, limit),
            pair.prompted.keep(query).ids() if pair.prompted is not None else None,
        )


@final
@dataclass(frozen=True)
class Drop(Truncation):
    """Leaves out pairs that do not fit, and cuts nothing.

    Args:
        max_length: tokens of prompt and response together.
        max_response_length: tokens of a response, end token included; None for no limit of its own.
    """

    max_length: int
    max_response_length: int | None = None

    def __call__(self, pair: EncodedPair) -> TokenizedPair | None:
        """See the base class."""
        limit = self.max_response_length or self.max_length
        longest = max(len(prompt.ids()) for prompt in pair.prompts)
        if longest + pair.response > self.max_length or pair.response > limit:
            return None
        chosen, rejected = _cut(pair.chosen, limit), _cut(pair.rejected, limit)
        prompted = pair.prompted.ids() if pair.prompted is not None else None
        return _tokenized(pair.where, pair.prompt.ids(), chosen, rejected, prompted)


def _cut(response: Ids, limit: int) -> TokenizedResponse:
    kept = response[:limit]
    return TokenizedResponse(kept, [True] * len(kept), truncated=len(kept) < len(response))


def _tokenized(
    where: str, prompt: Ids, chosen: TokenizedResponse, rejected: TokenizedResponse, prompted: Ids | None
) -> TokenizedPair:
    if chosen.ids == rejected.ids:
        cut = " after truncation" if chosen.truncated or rejected.truncated else ""
        raise DataError(where, f"chosen and rejected are the same {len(chosen.ids)} tokens{cut}")
    return TokenizedPair(prompt, chosen, rejected, prompted)
