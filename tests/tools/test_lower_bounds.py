"""The oldest supported versions are read from the project's dependencies."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "lower_bounds.py"


def lower_bounds(*instead: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *instead], capture_output=True, text=True)


def test_each_dependency_has_its_lower_bound_or_what_replaces_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    lines = lower_bounds("torch==2.13.0").stdout.split()
    oldest = re.search(r'"transformers>=([\d.]+),', text)
    assert oldest
    assert {"torch==2.13.0", f"transformers=={oldest[1]}"} <= {*lines}
    assert any(line.startswith("jsonargparse[signatures]==") for line in lines)
    listed = text.partition("\ndependencies = [\n")[2].partition("\n]\n")[0]
    assert len(lines) == len(listed.splitlines())


def test_a_replacement_of_what_is_no_dependency_is_refused() -> None:
    ended = lower_bounds("torhc==2.13.0")
    assert ended.returncode == 1
    assert "torhc is no dependency" in ended.stderr
