"""Prompts to sample responses for, the same ones throughout a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lit_align.data.prepare import Split


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
