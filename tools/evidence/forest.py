"""Paired differences with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED
from tools.evidence.intervals import Comparison

COLOURS = {"over seeds": CHOSEN, "over prompts": REJECTED}
LEAST_SEEDS = 3


def draw_forest(axis: Any, rows: Mapping[str, Sequence[Comparison]], kinds: Sequence[str] = tuple(COLOURS)) -> None:
    """Draw a row for each name, with a mark for each kind of comparison; filled ones hold after the correction.

    Intervals over two seeds are left out, as they are wider than the figure.

    Args:
        axis: of matplotlib.
        rows: name → a comparison of each kind.
        kinds: of comparisons, some of ``COLOURS``.
    """
    axis.axvline(0, color=GUIDE, linewidth=1)
    for place, comparisons in enumerate(rows.values()):
        for shift, (kind, each) in enumerate(zip(kinds, comparisons, strict=True)):
            drawn = each.difference.high is not None and each.difference.n >= LEAST_SEEDS
            half = (each.difference.high or 0.0) - each.difference.value if drawn else 0.0
            holds = each.holm is not None and each.holm < 0.05
            axis.errorbar(
                [each.difference.value],
                [place + 0.28 * (shift - (len(kinds) - 1) / 2)],
                xerr=[half],
                marker="o",
                markersize=6,
                color=COLOURS[kind],
                markerfacecolor=COLOURS[kind] if holds else "white",
                linestyle="none",
                elinewidth=1,
            )
    axis.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axis.set_ylim(len(rows) + 0.12 * len(rows), -0.5)  # with room for the legend
    for kind in kinds if rows else ():
        axis.plot([], [], marker="o", color=COLOURS[kind], markerfacecolor="white", linestyle="none", label=kind)
    if rows:
        title = "95 % intervals (seeds: from three on); filled: holds after Holm"
        axis.legend(title=title, fontsize=8, title_fontsize=8, ncols=2, frameon=False, loc="lower right")
