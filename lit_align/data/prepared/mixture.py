"""Mixtures of sources: how many pairs of each source are used, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from lit_align.data.formats.columns import ColumnMap, Columns
from lit_align.data.formats.registry import FormatName
from lit_align.errors import check_range

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Source:
    """One source of a split.

    Args:
        path: file, pattern, saved folder, testbed part or hub name.
        weight: desired number of pairs relative to the other sources. The mixture is the largest one in which no pair
            is used more than ``repeat`` times. Set it for all sources, or for none to use every pair. With weights the
            sources are read twice, the first time to count their pairs.
        repeat: how often a pair may be used in an epoch to reach the weight; without weights, how often it is used.
        columns: where the source keeps its columns; None for ``data.columns``.
        format: format of its rows; None for ``data.format``.
    """

    path: str
    weight: float | None = None
    repeat: int = 1
    columns: ColumnMap | None = None
    format: FormatName | None = None

    def check(self) -> None:
        """Raise a ``ValueError`` for a number out of range or an unknown column."""
        check_range(f"weight of {self.path}", self.weight, 0)
        check_range(f"repeat of {self.path}", self.repeat, 1)
        if self.weight == 0:
            raise ValueError(f"weight of {self.path} is 0; expected more than 0: leave the source out instead")
        Columns(self.columns or {})

    def with_defaults(self, columns: ColumnMap, format_name: FormatName) -> Source:
        """Fill in columns and format where the source does not set them."""
        return replace(
            self, columns=columns if self.columns is None else self.columns, format=self.format or format_name
        )


Sources: TypeAlias = str | list[str | Source]
"""The sources of a split as configured."""


def as_sources(configured: Sources | None) -> tuple[Source, ...]:
    """Normalize and check the configured sources of a split.

    Args:
        configured: one path, or a list of paths and sources; None for no source.

    Raises:
        ValueError: only some have a weight, or a source is invalid.

    >>> [source.path for source in as_sources(["a.jsonl", Source("b.jsonl")])]
    ['a.jsonl', 'b.jsonl']
    """
    if configured is None:
        return ()
    listed = configured if isinstance(configured, list) else [configured]
    sources = tuple(source if isinstance(source, Source) else Source(source) for source in listed)
    for source in sources:
        source.check()
        if source.path.lstrip().startswith(("[", "{")):
            keys = ", ".join(field.name for field in fields(Source))
            raise ValueError(f"{source.path} is no list of sources; expected paths, or objects with {keys}")
    without = [source.path for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"sources without a weight beside sources with one: {', '.join(without)}; set all, or none")
    return sources


def quotas(sources: Sequence[Source], counts: Sequence[int]) -> list[int]:
    """Return how many pairs of each source are used in an epoch.

    Raises:
        ValueError: the weight of a source is so small that none of its pairs would be used.

    >>> quotas([Source("a", weight=3), Source("b", weight=1)], [900, 200])
    [600, 200]
    >>> quotas([Source("a"), Source("b", repeat=2)], [900, 200])
    [900, 400]
    """
    available = [count * source.repeat for source, count in zip(sources, counts, strict=True)]
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return available
    total = min(pairs / weight for pairs, weight in zip(available, weights, strict=True))
    quota = [math.floor(weight * total * (1 + _ROUNDING)) for weight in weights]
    for source, used, pairs in zip(sources, quota, available, strict=True):
        if pairs and not used:
            raise ValueError(f"weight {source.weight} of {source.path} leaves none of its pairs; raise it")
    return quota


def copies(quota: int, count: int, seed: int) -> NDArray[np.uint16]:
    """Return how often each pair of a source is used: as evenly as possible, with the remainder drawn at random.

    Args:
        quota: number of pairs to use.
        count: number of pairs of the source.
        seed: seed of the draw.

    >>> sorted(copies(5, 4, seed=0).tolist())
    [1, 1, 1, 2]
    """
    times = np.full(count, quota // count if count else 0, dtype=np.uint16)
    generator = torch.Generator().manual_seed(seed % 2**63)
    chosen = torch.randperm(count, generator=generator)[: quota % count if count else 0]
    times[chosen.numpy()] += 1
    return times
