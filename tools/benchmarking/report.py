"""What was measured, as Markdown tables and figures."""

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
Found = Mapping[str, Mapping[str, Sequence[Result]]]
"""Case → side → its measurements, in turn."""


def table(found: Found, pairs: int, tokens: int) -> list[str]:
    """Median (least–most) of each, and what TRL takes of ours: median over neighbouring measurements.

    Args:
        found: the measurements.
        pairs: of the measured steps.
        tokens: of the measured steps.
    """
    lines = ["| case | side | " + " | ".join(COLUMNS) + " | user CPU / ours | wall / ours | peak / ours |"]
    lines.append("|---" * (5 + len(COLUMNS)) + "|")
    for case, sides in found.items():
        for side, results in sides.items():
            cells = [spread([column(result, pairs, tokens) for result in results]) for column in COLUMNS.values()]
            ratios = [_ratio(results, sides["ours"], name) for name in ("user", "seconds", "peak")]
            lines.append(f"| {case} | {side} | " + " | ".join([*cells, *ratios]) + " |")
    return lines


def phases(found: Found, steps: int) -> list[str]:
    """Milliseconds of each part of a step, medians; the first step is in them.

    Args:
        found: the measurements.
        steps: of a run.
    """
    names = ("data", "forward", "backward", "optimizer", "loop", "optimizer, loop")
    lines = ["| case | side | " + " | ".join(names) + " | loop, % of a step |", "|---" * (3 + len(names)) + "|"]
    for case, sides in found.items():
        for side, results in sides.items():
            values = {
                name: statistics.median(result.phases[name] for result in results) * 1000 / steps
                for name in names
                if name in results[0].phases
            }
            cells = [f"{values[name]:.4g}" if name in values else "" for name in names]
            share = f"{100 * values['loop'] / sum(values.values()):.1f}" if "loop" in values else ""
            lines.append(f"| {case} | {side} | " + " | ".join([*cells, share]) + " |")
    return lines


def compare_losses(case: str, sides: Mapping[str, Sequence[Result]], most: float) -> str:
    """How far the losses of sides that took the same pairs in the same steps are apart.

    Args:
        case: its name.
        sides: the measurements.
        most: by how much losses may differ.

    Raises:
        SystemExit: they differ by more; the work was not the same.
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


def beside(found: Found, case: str, base: str) -> str:
    """What one objective of ours takes of another's time: medians over neighbouring measurements.

    Args:
        found: the measurements.
        case: its name.
        base: the other's.
    """
    user, wall = (_ratio(found[case]["ours"], found[base]["ours"], name) for name in ("user", "seconds"))
    return f"Ours: {case} takes {user} times the user CPU of {base}, and {wall} times its wall."


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log(seconds) over log(size), by least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def plot_bars(found: Mapping[str, Found], pairs: int, path: Path) -> None:
    """Pairs per second of each side, a panel per vocabulary.

    Args:
        found: vocabulary → case → side → measurements.
        pairs: of the measured steps.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (vocabulary, cases) in zip(panels, found.items(), strict=True):
        sides = list(dict.fromkeys(side for case in cases.values() for side in case))
        for number, side in enumerate(sides):
            places = [place for place, case in enumerate(cases.values()) if side in case]
            rates = [[pairs / result.seconds for result in case[side]] for case in cases.values() if side in case]
            middle = np.array([statistics.median(rate) for rate in rates])
            spread = [middle - [min(rate) for rate in rates], [max(rate) for rate in rates] - middle]
            width = 0.8 / len(sides)
            panel.bar(np.array(places) + number * width, middle, width, yerr=spread, label=side, capsize=2)
        panel.set_xticks(np.arange(len(cases)) + 0.4 - 0.4 / len(sides), list(cases), rotation=20)
        panel.set(title=f"vocabulary {vocabulary}", ylabel="pairs per second")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def plot_curves(curves: Mapping[str, Mapping[int, float]], path: Path) -> None:
    """Seconds of a step over each size, both logarithmic, with the fitted exponent.

    Args:
        curves: what grows → size → seconds.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(curves), 3.2), layout="constrained")
    for panel, (name, found) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        slope = exponent(list(found), list(found.values()))
        panel.loglog(list(found), list(found.values()), "o-")
        panel.set(xlabel=name, ylabel="seconds per step", title=f"exponent {slope:.2f}")
        panel.set_xticks(list(found), [str(size) for size in found], minor=False)
        panel.minorticks_off()
    figure.savefig(path, dpi=120)


def spread(values: Sequence[float]) -> str:
    """Median (least–most).

    >>> spread([3.0, 1.0, 2.0])
    '2 (1–3)'
    """
    middle = f"{statistics.median(values):.4g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.4g}–{max(values):.4g})"


def _ratio(results: Sequence[Result], ours: Sequence[Result], name: str) -> str:
    if results is ours:
        return ""
    ratios = [getattr(one, name) / getattr(other, name) for one, other in zip(results, ours, strict=True)]
    return f"{statistics.median(ratios):.2f}"
