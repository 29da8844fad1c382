"""Markdown tables and figures of measurements."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarking.measure import Result

COLUMNS: Mapping[str, Callable[[Result, int, int], float]] = {
    "pairs/s": lambda result, pairs, _: pairs / result.seconds,
    "tokens/s": lambda result, _, tokens: tokens / result.seconds,
    "user CPU, s": lambda result, *_: result.user,
    "wall, s": lambda result, *_: result.seconds,
    "peak, MiB": lambda result, *_: result.peak,
    "startup, s": lambda result, *_: result.startup,
    "reference before, s": lambda result, *_: result.phases.get("precompute", 0.0),
}
Results = Mapping[str, Mapping[str, Sequence[Result]]]
"""Case → side → its measurements in order."""


def table(results: Results, pairs: int, tokens: int) -> list[str]:
    """Return a table of medians (min–max), and of ratios to our side: medians over neighbouring measurements.

    Args:
        results: the measurements.
        pairs: number of pairs of the measured steps.
        tokens: number of tokens of the measured steps.
    """
    lines = ["| case | side | " + " | ".join(COLUMNS) + " | user CPU / ours | wall / ours | peak / ours |"]
    lines.append("|---" * (5 + len(COLUMNS)) + "|")
    for case, sides in results.items():
        for side, runs in sides.items():
            cells = [spread([column(run, pairs, tokens) for run in runs]) for column in COLUMNS.values()]
            ratios = [_ratio(runs, sides["ours"], name) for name in ("user", "seconds", "peak")]
            lines.append(f"| {case} | {side} | " + " | ".join([*cells, *ratios]) + " |")
    return lines


def summary(models: Mapping[str, Results]) -> list[str]:
    """Return a line on each case: how many times our time the other sides take, and what they add to peak and startup.

    Args:
        models: name of a model → the measurements.
    """
    lines = []
    for model, results in models.items():
        for case, sides in results.items():
            others = {side: runs for side, runs in sides.items() if side != "ours"}
            times = {side: _ratio(runs, sides["ours"], "user") for side, runs in others.items()}
            parts = [f"{side} takes {ratio} times our user CPU" for side, ratio in times.items()]
            for name, unit in (("peak", "MiB"), ("startup", "s")):
                values = [_median(runs, name) for runs in (sides["ours"], *others.values())]
                beside = f", where the others have {', '.join(values[1:])}" if others else ""
                parts.append(f"our {name} is {values[0]} {unit}{beside}")
            lines.append(f"- {model}, {case}: {'; '.join(parts)}.")
    return lines


def _median(runs: Sequence[Result], name: str) -> str:
    return f"{statistics.median(getattr(run, name) for run in runs):.4g}"


def phases(results: Results, steps: int) -> list[str]:
    """Return a table of the median milliseconds of each part of a step, the first step included.

    Our ``training_step`` holds the forward passes and the backward passes of all chunks but the last one's.

    Args:
        results: the measurements.
        steps: of a run.
    """
    names = ("data", "forward", "backward", "training_step", "last backward", "optimizer", "loop", "optimizer, loop")
    lines = ["| case | side | " + " | ".join(names) + " | loop, % of a step |", "|---" * (3 + len(names)) + "|"]
    for case, sides in results.items():
        for side, runs in sides.items():
            values = {
                name: statistics.median(run.phases[name] for run in runs) * 1000 / steps
                for name in names
                if name in runs[0].phases
            }
            cells = [f"{values[name]:.4g}" if name in values else "" for name in names]
            share = f"{100 * values['loop'] / sum(values.values()):.1f}" if "loop" in values else ""
            lines.append(f"| {case} | {side} | " + " | ".join([*cells, share]) + " |")
    return lines


def compare_losses(case: str, sides: Mapping[str, Sequence[Result]], most: float) -> str:
    """Return the largest differences of losses between sides that trained on the same pairs in the same steps.

    Args:
        case: its name.
        sides: the measurements.
        most: largest allowed difference.

    Raises:
        SystemExit: losses differ by more, so the sides did not do the same work.
    """
    ours = np.array(sides["ours"][0].losses)
    apart = {}
    for side, results in sides.items():
        losses = np.array(results[0].losses)
        if len(losses) != len(ours):
            raise SystemExit(f"{case}: {side} took {len(losses)} steps, ours {len(ours)}")
        unit = max(1.0, float(np.abs(ours).max()))  # of a loss such as IPO's, which starts at (1 / 2β)²
        apart[side] = float(np.abs(losses - ours).max()) / unit
        if apart[side] > most:
            raise SystemExit(f"{case}: losses of {side} differ by {apart[side]:.2g}: {losses} against {ours}")
    return f"{case}: " + ", ".join(f"{side} {value:.1e}" for side, value in apart.items() if side != "ours")


def beside(results: Results, case: str, base: str) -> str:
    """Return the time of one case relative to another on our side: medians over neighbouring measurements.

    Args:
        results: the measurements.
        case: its name.
        base: name of the other.
    """
    user, wall = (_ratio(results[case]["ours"], results[base]["ours"], name) for name in ("user", "seconds"))
    return f"Ours: {case} takes {user} times the user CPU of {base}, and {wall} times its wall."


def line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Fit seconds = a + b · size with least squares of the relative errors, and return a and b.

    >>> [round(part, 6) for part in line([1, 2, 4], [3, 5, 9])]
    [1.0, 2.0]
    """
    slope, constant = np.polyfit(sizes, seconds, 1, w=1 / np.array(seconds))
    return float(constant), float(slope)


def plot_bars(results: Mapping[str, Results], pairs: int, path: Path) -> None:
    """Plot the pairs per second of each side, in a panel per model.

    Args:
        results: model → case → side → measurements.
        pairs: of the measured steps.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(results), 3.6), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, (model, cases) in zip(panels, results.items(), strict=True):
        sides = list(dict.fromkeys(side for case in cases.values() for side in case))
        for number, side in enumerate(sides):
            places = [place for place, case in enumerate(cases.values()) if side in case]
            rates = [[pairs / result.seconds for result in case[side]] for case in cases.values() if side in case]
            middle = np.array([statistics.median(rate) for rate in rates])
            spread = [middle - [min(rate) for rate in rates], [max(rate) for rate in rates] - middle]
            width = 0.8 / len(sides)
            panel.bar(np.array(places) + number * width, middle, width, yerr=spread, label=side, capsize=2)
        panel.set_xticks(np.arange(len(cases)) + 0.4 - 0.4 / len(sides), list(cases), rotation=20)
        panel.set(title=model, ylabel="pairs per second")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_curves(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Plot the seconds of a step over each size, with the fitted line.

    Args:
        curves: name of the size → size → seconds.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(curves), 3.2), layout="constrained")
    for panel, (name, curve) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        constant, slope = line(list(curve), list(curve.values()))
        panel.plot(list(curve), list(curve.values()), "o")
        panel.plot([0, max(curve)], [constant, constant + slope * max(curve)], "--")
        panel.set(xlabel=name, ylabel="seconds per step", ylim=(0, None))
    figure.savefig(path, dpi=120)


def spread(values: Sequence[float]) -> str:
    """Format median (min–max).

    >>> spread([3.0, 1.0, 2.0])
    '2 (1–3)'
    """
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g}–{max(values):.4g})"


def _ratio(results: Sequence[Result], ours: Sequence[Result], name: str) -> str:
    if results is ours:
        return ""
    ratios = [getattr(theirs, name) / getattr(own, name) for theirs, own in zip(results, ours, strict=True)]
    return f"{statistics.median(ratios):.2f}"
