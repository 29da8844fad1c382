"""Figures of the lengths of splits, as PNG files; blue is chosen and orange is rejected in all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from lit_align.data.report.lengths import LengthReport, PairLengths, short_name
from lit_align.statistics import Distribution

CHOSEN, REJECTED, GAP, GUIDE = "#0072b2", "#d55e00", "#5b5b5b", "#8c8c8c"
"""Colours of the palette of Okabe and Ito, which remain distinguishable with any colour vision."""

STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
"""Settings of matplotlib for every figure of the package."""
_SHADES = ListedColormap(colormaps["Blues"](np.linspace(0.25, 1, 256)))
_SIZE = (7.2, 4.0)
_MAX_POINTS = 1500
_MARGIN = 0.3


def draw(folder: Path, reports: Mapping[str, LengthReport], gaps: Mapping[str, NDArray[np.float64]]) -> list[Path]:
    """Draw and save the figures of all splits.

    Args:
        folder: an existing folder for the files.
        reports: split → report.
        gaps: split → gap in tokens and gap in scores of each pair that has both, for the splits with scores.

    Returns:
        The files, in the order in which they should be viewed.
    """
    figures: dict[str, Figure] = {}
    with rc_context(STYLE):  # type: ignore[arg-type]
        for split, report in reports.items():
            if report.lengths.chosen.count or report.lengths.rejected.count:
                figures[f"lengths_{split}"] = lengths_figure(split, report.lengths)
            if report.lengths.gap.count:
                figures[f"gap_{split}"] = gap_figure(split, report.lengths)
            if split in gaps:
                figures[f"scores_{split}"] = scores_figure(split, report.lengths, gaps[split])
        if any(report.lengths.gap.count for report in reports.values()):
            figures["longer_wins"] = longer_wins_figure(reports)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def lengths_figure(split: str, lengths: PairLengths) -> Figure:
    """Draw the lengths of the responses of both sides."""
    figure, axes = _canvas(f"{split}: length of the responses", "", "responses")
    for name, side, colour in (("chosen", lengths.chosen, CHOSEN), ("rejected", lengths.rejected, REJECTED)):
        if side.count:
            _outline(axes, side, colour, f"{name}, mean {side.mean:.1f}")
            axes.axvline(side.mean, color=colour, linestyle="--", linewidth=1.3)
    sides = [side for side in (lengths.chosen, lengths.rejected) if side.count]
    _limit_axis(axes, "scored tokens", (0, max(_axis_end(side, 99) for side in sides)), sides)
    axes.legend()
    return figure


def gap_figure(split: str, lengths: PairLengths) -> Figure:
    """Draw how much longer the chosen responses are than the rejected ones."""
    figure, axes = _canvas(f"{split}: gap in length", "", "pairs")
    _outline(axes, lengths.gap, GAP, None)
    axes.axvline(0, color="black", linewidth=1.0)
    axes.axvline(
        lengths.gap.mean, color=CHOSEN, linestyle="--", linewidth=1.6, label=_signed("mean", lengths.gap.mean)
    )
    end = max(_axis_end(lengths.gap, 1), _axis_end(lengths.gap, 99))
    _limit_axis(axes, "scored tokens, chosen − rejected", (-end, end), [lengths.gap])
    axes.legend()
    return figure


def longer_wins_figure(reports: Mapping[str, LengthReport]) -> Figure:
    """Draw how often the longer response is the chosen one, for each split and each of its sources."""
    rows = [row for split, report in reports.items() for row in _rows(split, report) if row[1].gap.count]
    figure, axes = _canvas("How often the longer response is the chosen one", "share of pairs, 95 % interval", "")
    figure.set_size_inches(_SIZE[0], 1.4 + 0.5 * len(rows))
    for place, (_, lengths) in enumerate(rows):
        wins = lengths.longer_wins
        axes.barh(place, wins.share - 0.5, left=0.5, height=0.55, color=CHOSEN, alpha=0.35)
        axes.errorbar(
            wins.share,
            place,
            xerr=[[wins.share - wins.low], [wins.high - wins.share]],
            color=CHOSEN,
            fmt="o",
            capsize=4,
        )
        end, step, side = (wins.high, 8, "left") if wins.share >= 0.5 else (wins.low, -8, "right")
        text = f"{wins.share:.1%}"
        axes.annotate(text, (end, place), (step, 0), textcoords="offset points", va="center", ha=side)
    axes.axvline(0.5, color="black", linewidth=1.0)
    axes.set_yticks(range(len(rows)), [f"{name}\n{lengths.gap.count} pairs" for name, lengths in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(*_around_half([lengths for _, lengths in rows]))
    axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def scores_figure(split: str, lengths: PairLengths, gaps: NDArray[np.float64]) -> Figure:
    """Draw scores against lengths, as density if there are too many pairs for single points."""
    known = lengths.score_correlation
    title = f"{split}: scores and lengths" if known is None else _signed(f"{split}: scores and lengths, r =", known, 2)
    figure, axes = _canvas(title, "scored tokens, chosen − rejected", "score, chosen − rejected")
    if len(gaps) <= _MAX_POINTS:
        axes.scatter(gaps[:, 0], gaps[:, 1], s=9, color=CHOSEN, alpha=0.4, linewidths=0)
    else:
        cells = axes.hexbin(gaps[:, 0], gaps[:, 1], gridsize=36, mincnt=1, cmap=_SHADES, bins="log", linewidths=0.1)
        figure.colorbar(cells, ax=axes, label="pairs", format="%g")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    return figure


def _canvas(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _outline(axes: Axes, lengths: Distribution, colour: str, label: str | None) -> None:
    edges, counts = lengths.histogram.edges, lengths.histogram.counts
    axes.stairs(counts, edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(counts, edges, color=colour, linewidth=1.5, label=label)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _limit_axis(axes: Axes, label: str, ends: tuple[float, float], lengths: Sequence[Distribution]) -> None:
    """Limit the axis, and state how many values lie beyond it."""
    axes.set_xlim(*ends)
    outside = sum(_outside(distribution, *ends) for distribution in lengths)
    axes.set_xlabel(f"{label}; {outside} lie beyond the axis" if outside else label)


def _axis_end(lengths: Distribution, percentile: int) -> float:
    """Return how far the axis reaches: to the last bin or, with outliers, a little past the given percentile."""
    last = lengths.histogram.edges[0 if percentile < 50 else -1]
    value = lengths.percentiles[percentile]
    most = value + _MARGIN * (value - lengths.percentiles[50])
    return max(min(abs(last), abs(most)), lengths.histogram.width)


def _outside(lengths: Distribution, low: float, high: float) -> int:
    edges = lengths.histogram.edges
    bins = zip(edges[:-1], edges[1:], lengths.histogram.counts, strict=True)
    return sum(count for start, end, count in bins if end <= low or start >= high)


def _rows(split: str, report: LengthReport) -> list[tuple[str, PairLengths]]:
    return [
        (split, report.lengths),
        *((f"{split}: {short_name(name)}", source) for name, source in report.sources.items()),
    ]


def _around_half(rows: Sequence[PairLengths]) -> tuple[float, float]:
    """Return axis limits that contain 50 % and every interval, with room for the labels."""
    low = min(0.45, *(lengths.longer_wins.low for lengths in rows))
    high = max(0.55, *(lengths.longer_wins.high for lengths in rows))
    return low - 0.15 * (high - low), high + 0.15 * (high - low)


def _signed(name: str, value: float, digits: int = 1) -> str:
    return f"{name} {value:+.{digits}f}".replace("-", "−")
