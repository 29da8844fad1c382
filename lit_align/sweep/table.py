"""Tables of a sweep: mean and interval over seeds of each metric, for each setting."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_align.cli.suggestions import did_you_mean, near
from lit_align.comparison.numbers import t_interval
from lit_align.comparison.runs import METRICS, curves_of
from lit_align.evaluation.record import read_jsonl, write_whole
from lit_align.sweep.grid import Cell

DEFAULT_METRICS = (
    *("samples/policy/score", "samples/policy/length/mean"),
    *("val/loss", "val/rewards/accuracies", "val/rewards/margins", "val/lengths/margin_correlation"),
    *("val/score", "val/entropy"),
)
"""Metrics of a sweep's table, as far as its runs report them."""


@dataclass(frozen=True)
class SeedMean:
    """A metric of a setting over its seeds.

    Args:
        mean: over the seeds.
        low: end of the 95 % interval of the mean, by Student's t distribution; None for a single seed.
        high: its other end.
        values: seed → the metric's last value.
    """

    mean: float
    low: float | None
    high: float | None
    values: Mapping[int, float]

    @classmethod
    def of(cls, values: Mapping[int, float]) -> SeedMean:
        """Summarize the values of one or more seeds."""
        estimate = t_interval(list(values.values()))
        return cls(estimate.value, estimate.low, estimate.high, values)

    def __str__(self) -> str:
        """Return the mean, and half of the interval's width with as many digits."""
        if self.high is None:
            return f"{self.mean:.3g}"
        half = self.high - self.mean
        digits = min(max(2 - math.floor(math.log10(half)) - 1, 0), 6) if half > 0 else 3
        return f"{self.mean:.{digits}f} ± {half:.{digits}f}"


def last_values(run: Path) -> dict[str, float]:
    """Return the last value of each metric of a run."""
    return {name: curve[max(curve)] for name, curve in curves_of(read_jsonl(run / METRICS)).items()}


def choose_metrics(names: Sequence[str], reported: Iterable[str]) -> list[str]:
    """Return the metrics of a table.

    Args:
        names: that are asked for; none for those of ``DEFAULT_METRICS`` that the runs have reported,
            or the training loss.
        reported: by any run.

    Raises:
        ValueError: no run has reported one of the names.
    """
    known = set(reported)
    unknown = [name for name in names if name not in known]
    if unknown:
        hint = did_you_mean(near(unknown[0], known)) or f"; reported are {', '.join(sorted(known))}"
        raise ValueError(f"--metrics {unknown[0]}: no run of the sweep has reported that{hint}")
    usual = [name for name in DEFAULT_METRICS if name in known]
    return list(names) or usual or sorted({"train/loss"} & known)


def summarize(
    cells: Sequence[Cell], values: Mapping[str, Mapping[str, float]], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return for each setting what it sets, the seeds that have finished, and its metrics."""
    rows = []
    for setting in dict.fromkeys(cell.setting for cell in cells):
        own = [cell for cell in cells if cell.setting == setting and cell.name in values]
        numbers = {
            name: {cell.seed: values[cell.name][name] for cell in own if name in values[cell.name]} for name in metrics
        }
        rows.append(
            {
                "setting": setting,
                "values": dict(next(cell for cell in cells if cell.setting == setting).values),
                "seeds": [cell.seed for cell in own],
                "metrics": {name: SeedMean.of(by_seed) for name, by_seed in numbers.items() if by_seed},
            }
        )
    return rows


def as_markdown(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> str:
    """Return the table of a sweep in Markdown, with columns of equal width."""
    lines = [["setting", "seeds", *metrics]]
    for row in rows:
        numbers = [str(row["metrics"].get(name, "")) for name in metrics]
        lines.append([str(row["setting"]).replace("|", "\\|"), str(len(row["seeds"])), *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def write_tables(
    folder: Path, cells: Sequence[Cell], finished: Sequence[str], failed: Mapping[str, Path], metrics: Sequence[str]
) -> str:
    """Write ``sweep.md`` and ``sweep.json`` into the folder of a sweep, and return the table.

    Args:
        folder: of the sweep.
        cells: of the sweep.
        finished: names of the cells that have finished.
        failed: names of the others → their logs.
        metrics: names that are asked for; none for the default ones.

    Raises:
        ValueError: no run has reported one of the names.
    """
    values = {cell.name: last_values(cell.folder) for cell in cells if cell.name in set(finished)}
    chosen = choose_metrics(metrics, (name for numbers in values.values() for name in numbers)) if values else []
    rows = summarize(cells, values, chosen)
    table = as_markdown(rows, chosen)
    notes = ["Last values; mean over seeds ± half of the 95 % interval (Student's t).", *_failures(failed)]
    write_whole(folder / "sweep.md", "\n\n".join([f"# {folder.name}", table, *notes]) + "\n")
    content = {
        "settings": [{**row, "metrics": {name: vars(mean) for name, mean in row["metrics"].items()}} for row in rows],
        "cells": [
            {
                "name": cell.name,
                "seed": cell.seed,
                "values": cell.values,
                "state": "finished" if cell.name in values else "failed" if cell.name in failed else "unfinished",
            }
            for cell in cells
        ],
    }
    write_whole(folder / "sweep.json", json.dumps(content, indent=2, default=str) + "\n")
    return table


def _failures(failed: Mapping[str, Path]) -> list[str]:
    return ["\n".join(f"- failed: {name} ({log})" for name, log in failed.items())] if failed else []
