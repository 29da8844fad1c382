"""Print the lower bounds of the dependencies as exact versions, for an environment with the oldest that are allowed.

python tools/lower_bounds.py [NAME==VERSION ...]        (these take the place of bounds)
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def lower_bounds(project: Path, instead: list[str]) -> list[str]:
    """Return ``name==version`` for every dependency of a ``pyproject.toml``.

    Raises:
        ValueError: for a dependency without a lower bound, and for a replacement of what is none.
    """
    other, pinned = {line.partition("==")[0]: line for line in instead}, []
    for dependency in tomllib.loads(project.read_text())["project"]["dependencies"]:
        parts = re.match(r"([\w.-]+)(\[[\w,-]+\])?>=([\w.]+)", dependency)
        if parts is None:
            raise ValueError(f"{project}: {dependency!r} has no lower bound; expected NAME>=VERSION")
        name, extras, version = parts.groups("")
        pinned.append(other.pop(name, f"{name}{extras}=={version}"))
    if other:
        raise ValueError(f"{project}: {', '.join(other)} is no dependency")
    return pinned


if __name__ == "__main__":
    print("\n".join(lower_bounds(Path(__file__).parents[1] / "pyproject.toml", sys.argv[1:])))
