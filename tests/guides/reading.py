"""Read the sections, fenced blocks and tables of a guide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the words in front of it."""

    section: str
    language: str
    text: str
    before: str


def guide(name: str) -> str:
    return (GUIDES / f"{name}.md").read_text("utf-8")


def blocks(markdown: str) -> Iterator[Block]:
    """Iterate over the fenced blocks of a guide."""
    for part in re.split(r"^## ", markdown, flags=re.MULTILINE):
        section, end = part.partition("\n")[0], 0
        for fence in FENCE.finditer(part):
            yield Block(section, fence[1], fence[2], part[end : fence.start()])
            end = fence.end()


def files(markdown: str) -> dict[str, str]:
    """Return name → text of the Python files that a guide shows, each with its name before it."""
    named = {}
    for block in blocks(markdown):
        name = re.search(r"`parts/(\w+\.py)`:\s*$", block.before)
        if block.language == "python" and name is not None:
            named[name[1]] = block.text
    return named


def rows(markdown: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table whose first column has this heading."""
    lines = markdown.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    cells = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return cells
