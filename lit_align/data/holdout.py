"""A holdout takes validation pairs out of the training pairs, all pairs of a prompt together."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lit_align.types import Text

_HASHES = 2**64


@dataclass(frozen=True)
class Holdout:
    """Which prompts are held out: those whose hash is below a threshold, whatever the order of the rows.

    Args:
        size: share of the prompts, above 0 and below 1; or at least so many pairs.
        seed: another seed holds out others.

    Raises:
        ValueError: the size is out of its range.
    """

    size: int | float
    seed: int = 0

    def __post_init__(self) -> None:
        counted = isinstance(self.size, int) and not isinstance(self.size, bool)
        if (counted and self.size < 1) or (not counted and not 0 < self.size < 1):
            raise ValueError(
                f"data.holdout is {self.size}; expected a share above 0 and below 1, or a number of pairs from 1"
            )

    def hash(self, prompt: Text) -> int:
        """The place of a prompt among all prompts, 0 to 2⁶⁴ − 1."""
        spelled = json.dumps([self.seed, prompt], sort_keys=True, default=str)
        return int.from_bytes(hashlib.blake2b(spelled.encode(), digest_size=8).digest(), "big")

    @property
    def below(self) -> int | None:
        """The hash below which a prompt is held out, where a share says it; a number of pairs must see them first."""
        return int(self.size * _HASHES) if isinstance(self.size, float) else None

    def threshold(self, hashes: NDArray[np.uint64]) -> int:
        """The same for a number of pairs.

        Args:
            hashes: of the prompt of every pair.

        Raises:
            ValueError: every pair, or none, would be held out.
        """
        if self.below is not None:
            return self.below
        if self.size >= len(hashes):
            raise ValueError(f"data.holdout {self.size} would hold out all of {len(hashes)} pairs; expected fewer")
        return int(np.sort(hashes)[int(self.size) - 1]) + 1
