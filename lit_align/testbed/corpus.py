"""The testbed's files of pairs, drawn from one seed; no two splits share a post."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

from lit_align.testbed.preferences import Row, draw_demonstration, draw_pair, draw_posts

SEED = 20240531
"""Seed of the shipped files."""
SIZES = {"train": 2400, "validation": 300, "test": 300}
"""Pairs in each shipped split."""


def draw_splits(seed: int = SEED) -> dict[str, list[Row]]:
    """The preference pairs of every split.

    >>> {name: len(rows) for name, rows in draw_splits().items()}
    {'train': 2400, 'validation': 300, 'test': 300}
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    return {name: [draw_pair(rng, post) for post in draw_posts(rng, size, seen)] for name, size in SIZES.items()}


def draw_demonstrations(count: int, seed: int = SEED) -> list[Row]:
    """Rows whose chosen side is a demonstration, on posts that no shipped split holds.

    >>> len(draw_demonstrations(3))
    3
    """
    seen = {row["prompt"] for rows in draw_splits(seed).values() for row in rows}
    rng = random.Random(seed + 1)
    return [draw_demonstration(rng, post) for post in draw_posts(rng, count, seen)]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines, the same bytes for the same rows on every system."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(text.encode("utf-8"))


def read_rows(path: Path) -> list[Row]:
    """Reads what ``write_rows`` wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
