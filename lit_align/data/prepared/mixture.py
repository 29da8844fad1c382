"""A mixture says how many pairs of each source are used, and which."""

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

_SAME = 1e-9


@dataclass(frozen=True)
class Source:
    """One of several sources of a split.

    Args:
        path: file, pattern, saved folder, testbed part or hub name.
        weight: pairs wanted of this source relative to the others' weights. The mixture is the largest one in which no
            pair is used more than ``repeat`` times. Set it for all sources, or for none to use every pair. The sources
            are then read twice: once to count their pairs.
        repeat: how often a pair may be used in an epoch to reach the weight; without weights, how often it is used.
        columns: where the source keeps its columns; None for ``data.columns``.
        format: how its rows spell prompt and responses; None for ``data.format``.
    """

    path: str
    weight: float | None = None
    repeat: int = 1
    columns: ColumnMap | None = None
    format: FormatName | None = None

    def check(self) -> None:
        """Raise for a number out of its range, or a column that no format knows."""
        check_range(f"weight of {self.path}", self.weight, 0)
        check_range(f"repeat of {self.path}", self.repeat, 1)
        if self.weight == 0:
            raise ValueError(f"weight of {self.path} is 0; expected more than 0: leave the source out instead")
        Columns(self.columns or {})

    def filled(self, columns: ColumnMap, layout: FormatName) -> Source:
        """The source with these columns and this format where it says nothing itself."""
        own = self.columns
        return replace(self, columns=columns if own is None else own, format=self.format or layout)


Sources: TypeAlias = str | list[str | Source]
"""What a split is read from, as it is configured."""


def as_sources(given: Sources | None) -> tuple[Source, ...]:
    """The sources of a split; none where none is given.

    Args:
        given: as it is configured.

    Raises:
        ValueError: some have a weight and some have none, or one is not in order.

    >>> [source.path for source in as_sources(["a.jsonl", Source("b.jsonl")])]
    ['a.jsonl', 'b.jsonl']
    """
    if given is None:
        return ()
    listed = given if isinstance(given, list) else [given]
    sources = tuple(each if isinstance(each, Source) else Source(each) for each in listed)
    for source in sources:
        source.check()
        if source.path.lstrip().startswith(("[", "{")):
            keys = ", ".join(each.name for each in fields(Source))
            raise ValueError(f"{source.path} is no list of sources; expected paths, or objects with {keys}")
    without = [source.path for source in sources if source.weight is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"sources without a weight beside sources with one: {', '.join(without)}; set all, or none")
    return sources


def quotas(sources: Sequence[Source], counts: Sequence[int]) -> list[int]:
    """How many pairs of each source are used in an epoch.

    Args:
        sources: the sources.
        counts: pairs that each has.

    Raises:
        ValueError: a source has so small a weight that none of its pairs would be used.

    >>> quotas([Source("a", weight=3), Source("b", weight=1)], [900, 200])
    [600, 200]
    >>> quotas([Source("a"), Source("b", repeat=2)], [900, 200])
    [900, 400]
    """
    available = [count * source.repeat for source, count in zip(sources, counts, strict=True)]
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return available
    total = min(there / weight for there, weight in zip(available, weights, strict=True))
    found = [math.floor(weight * total * (1 + _SAME)) for weight in weights]
    for source, quota, there in zip(sources, found, available, strict=True):
        if there and not quota:
            raise ValueError(f"weight {source.weight} of {source.path} leaves none of its pairs; raise it")
    return found


def copies(quota: int, count: int, seed: int) -> NDArray[np.uint16]:
    """How often each pair of a source is used: as equally often as possible, the rest drawn by the seed.

    Args:
        quota: pairs to use.
        count: pairs that there are.
        seed: another seed draws others.

    >>> sorted(copies(5, 4, seed=0).tolist())
    [1, 1, 1, 2]
    """
    times = np.full(count, quota // count if count else 0, dtype=np.uint16)
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.randperm(count, generator=generator)[: quota % count if count else 0]
    times[drawn.numpy()] += 1
    return times
