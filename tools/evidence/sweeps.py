"""Sweeps of a page, one for each seed, and the numbers of their runs.

Seeds are swept one after another, so that an interrupted page has whole seeds, and a later start adds some. The
numbers of a finished run are kept in ``numbers.json`` beside it: they stay when the code that made them has changed.
Those of a whole page are published with it, so that its tables and figures can be made, and seeds added, without
training all of it again.
"""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
NUMBERS, FINISHED = "numbers.json", "finished"
_DIGITS = 6
"""Significant digits that are kept of a number."""


@dataclass(frozen=True)
class RunNumbers:
    """Numbers of a finished run.

    Args:
        setting: name of its settings, the same for all seeds.
        seed: of the run.
        values: dotted key → value, what the grid sets.
        steps: step → name → number.
        final: name → number or numbers after the last step.
        code: digest of the code that made it.
    """

    setting: str
    seed: int
    values: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, float]]
    final: Mapping[str, Any]
    code: str


Measure = Callable[[Path], dict[str, Any]]
"""Folder of a finished run → its ``steps`` and ``final``."""


def sweep_seeds(grid: Path, runs: Path, seeds: Iterable[int], measure: Measure, options: Iterable[str] = ()) -> None:
    """Sweep a grid for each seed that has not finished, and keep the numbers of every run.

    Args:
        grid: file of the grid; its ``seeds`` are replaced. ``$seed`` in it stands for the seed, and ``$runs`` for the
            folder that ``runs`` lies in, so that a run may start from one of an earlier sweep of the same seed.
        runs: folder of the page's runs, with a sweep in ``seed=N`` for each seed.
        seeds: in this order.
        measure: computes what is not among a run's metrics.
        options: of ``fit``, for every run.
    """
    template = Template(grid.read_text("utf-8"))
    for seed in seeds:
        content = yaml.safe_load(template.safe_substitute(runs=runs.parent, seed=seed))
        folder = runs / f"seed={seed}"
        if (folder / FINISHED).is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / "grid.yaml"
        own.write_text(yaml.safe_dump(content | {"seeds": [seed], "run": str(folder)}, sort_keys=False), "utf-8")
        command = [sys.executable, "-m", "lit_align", "sweep", str(own), *options]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        keep_numbers(folder, measure)
        if code:
            sys.exit(f"the sweep of seed {seed} ended with code {code}; the same command goes on")
        (folder / FINISHED).write_text("")


def keep_numbers(folder: Path, measure: Measure) -> None:
    """Compute the numbers of the finished runs of a sweep, unless they are kept already."""
    for marker in sorted(folder.glob("*/cell.json")):
        cell, file = json.loads(marker.read_text("utf-8")), marker.parent / NUMBERS
        if not cell["finished"] or (file.is_file() and json.loads(file.read_text("utf-8"))["code"] == _code(cell)):
            continue
        setting, _, seed = marker.parent.name.rpartition("-seed=")
        values = {key: value for key, value in cell["identity"]["settings"].items() if key != "run"}
        write_numbers(
            marker.parent, RunNumbers(setting, int(seed), values, code=_code(cell), **measure(marker.parent))
        )


def write_numbers(run: Path, numbers: RunNumbers) -> None:
    """Keep the numbers of a run in its folder, with as many digits as a page can need."""
    (run / NUMBERS).write_text(json.dumps(_rounded(asdict(numbers))), "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _code(cell: Mapping[str, Any]) -> str:
    return str(cell["identity"]["code"])


def read_numbers(runs: Path, seeds: Container[int] | None = None) -> list[RunNumbers]:
    """Return the numbers of all runs of a page, by seed and setting.

    Args:
        runs: folder of the page's runs.
        seeds: whose runs count; None for all.
    """
    files = sorted(runs.glob(f"seed=*/*/{NUMBERS}"))
    numbers = [RunNumbers(**json.loads(file.read_text("utf-8"))) for file in files]
    return [run for run in numbers if seeds is None or run.seed in seeds]


def publish(runs: Path, seeds: Container[int], file: Path) -> None:
    """Write the numbers of a page's runs into one compressed file, a line of JSON for each run.

    Args:
        runs: folder of the page's runs; the name of a run is its folder in there. Paths into it begin with ``$runs``.
        seeds: whose runs are published, where all of them have finished.
        file: written anew, with the same bytes for the same numbers; left as it is if there are none.
    """
    lines = []
    for path in sorted(runs.rglob(NUMBERS)):
        numbers = json.loads(path.read_text("utf-8").replace(str(runs), "$runs"))
        if numbers["seed"] in seeds and (path.parents[1] / FINISHED).is_file():
            lines.append(json.dumps({"run": path.parent.relative_to(runs).as_posix(), **_rounded(numbers)}) + "\n")
    if lines:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(lzma.compress("".join(lines).encode(), preset=9))


def restore(file: Path, runs: Path) -> None:
    """Write published numbers into the folder of a page's runs, whose seeds then count as finished."""
    for line in lzma.decompress(file.read_bytes()).decode().splitlines():
        content = json.loads(line.replace("$runs", str(runs)))
        run = runs / content.pop("run")
        if not (run / NUMBERS).is_file():
            run.mkdir(parents=True, exist_ok=True)
            (run / NUMBERS).write_text(json.dumps(content), "utf-8")
        (run.parent / FINISHED).write_text("")
