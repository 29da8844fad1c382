"""Mismatched pairs put other rows' responses behind each row's prompt, to estimate how far a policy has moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final, overload

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.batches.sampler import generator_of
from lit_align.data.prepared.prepare import Split
from lit_align.data.prepared.store import PairStore
from lit_align.types import TokenizedPair, TokenizedResponse


@final
class MismatchedPairs(Sequence[TokenizedPair]):
    """The pairs of a split, each with the responses of its partner beside its own.

    The partners do not depend on batch, rank or epoch. Behind a long prompt a partner's responses are cut at their
    end, so that prompt and response stay within the limit; a side that the partner does not have is absent here too.

    Args:
        pairs: the split.
        partners: position of each pair's partner; see ``partners``.
        max_length: tokens of prompt and response together.

    >>> one, two = TokenizedResponse([3, 4], [True] * 2), TokenizedResponse([5, 6, 7], [True] * 3)
    >>> pairs = [TokenizedPair([1, 2], one, two), TokenizedPair([8, 9], two, one)]
    >>> chosen, rejected = MismatchedPairs(pairs, np.array([1, 0]), max_length=4)[0].mismatched
    >>> chosen.ids, chosen.truncated, rejected.ids, rejected.truncated
    ([5, 6], True, [3, 4], False)
    """

    def __init__(self, pairs: Sequence[TokenizedPair], partners: NDArray[np.int64], max_length: int) -> None:
        self.pairs = pairs
        self.partners = partners
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, place: int) -> TokenizedPair: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TokenizedPair]: ...
    def __getitem__(self, place: int | slice) -> TokenizedPair | Sequence[TokenizedPair]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        own, other = self.pairs[place], self.pairs[int(self.partners[place])]
        room = self.max_length - len(own.prompt)
        return replace(own, mismatched=(_cut(other.chosen, room), _cut(other.rejected, room)))


def partners(store: PairStore, seed: int) -> NDArray[np.int64]:
    """The position of each pair's partner: never itself, and of another prompt where the split has enough of them.

    Every pair is the partner of exactly one. The pairs are put in a random order in which those with the same prompt
    stand together, and each is given the one that stands as many places further as the most frequent prompt has pairs.

    Args:
        store: the pairs.
        seed: the same seed gives the same partners.

    Raises:
        ValueError: there is only one pair.
    """
    count = len(store)
    if count < 2:
        raise ValueError(
            "the objective compares with the responses of other rows, but the split has only one; add rows"
        )
    _, prompt, size = np.unique(store.hashes(("prompt",)), return_inverse=True, return_counts=True)
    generator = generator_of(seed, 0)
    rank = torch.randperm(len(size), generator=generator).numpy()[prompt]
    order = np.lexsort((torch.randperm(count, generator=generator).numpy(), rank))
    step = int(size.max()) if size.max() < count else 1
    found = np.empty(count, dtype=np.int64)
    found[order] = np.roll(order, -step)
    return found


def mismatched_widths(store: PairStore, partners: NDArray[np.int64], max_length: int) -> NDArray[np.int64]:
    """Tokens of the longest sequence of each pair, those with its partner's responses included.

    Args:
        store: the pairs.
        partners: position of each pair's partner.
        max_length: tokens of prompt and response together.
    """
    prompt, chosen, rejected, _ = store.part_lengths.T
    other = np.maximum(chosen, rejected)[partners]
    widths: NDArray[np.int64] = np.maximum(store.widths, np.minimum(prompt + other, max_length))
    return widths


def _cut(response: TokenizedResponse, room: int) -> TokenizedResponse:
    if len(response.ids) <= room:
        return response
    return TokenizedResponse(response.ids[:room], response.scored[:room], truncated=True)


@dataclass(frozen=True)
class SamplePrompt:
    """A prompt to sample responses for: its ids as in training, and its text."""

    ids: Sequence[int]
    text: str


def sample_prompts(split: Split, count: int, decode: Callable[[Sequence[int]], str]) -> list[SamplePrompt]:
    """Prompts taken evenly from a split.

    Args:
        split: its pairs.
        count: how many at most.
        decode: text of ids, for prompts that are messages.
    """
    total = len(split.pairs)
    places = sorted({math.floor(number * total / count) for number in range(count)})
    found = [(split.store[place].prompt, split.pairs[place].prompt) for place in places]
    return [SamplePrompt(ids, text if isinstance(text, str) else decode(ids)) for ids, text in found]
