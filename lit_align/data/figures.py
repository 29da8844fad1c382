"""Figures of the lengths of some splits, one PNG file each; blue is chosen and orange rejected, wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lit_align.data.lengths import LengthReport, PairLengths
from lit_align.data.statistics import Distribution

CHOSEN, REJECTED, GAP, GUIDE = "#0072b2", "#d55e00", "#5b5b5b", "#8c8c8c"
"""Of the palette of Okabe and Ito, which readers with any kind of colour vision tell apart."""

_LOOK = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
_SIZE = (7.2, 4.0)
_MOST_POINTS = 1500
_TAIL = 99
_CUT_OFF = 1.3


def draw(folder: Path, reports: Mapping[str, LengthReport], gaps: Mapping[str, NDArray[np.float64]]) -> list[Path]:
    """Draw what there is to see and save it.

    Args:
        folder: where the files go; it exists.
        reports: split → report.
        gaps: split → gap in tokens and gap in scores of each pair that has both, for the splits with scores.

    Returns:
        The files, in the order in which they are looked at.
    """
    figures: dict[str, Figure] = {}
    with rc_context(_LOOK):  # type: ignore[arg-type]
        for split, report in reports.items():
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
    """How long the responses of both sides are."""
    figure, axes = _canvas(f"{split}: length of the responses", "scored tokens", "responses")
    for name, side, colour in (("chosen", lengths.chosen, CHOSEN), ("rejected", lengths.rejected, REJECTED)):
        if side.count:
            _outline(axes, side, colour, f"{name}, mean {side.mean:.1f}")
            axes.axvline(side.mean, color=colour, linestyle="--", linewidth=1.2)
    axes.set_xlim(0, _right_end(lengths.chosen, lengths.rejected))
    axes.legend()
    return figure


def gap_figure(split: str, lengths: PairLengths) -> Figure:
    """How much longer the chosen responses are than the rejected ones."""
    figure, axes = _canvas(f"{split}: gap in length", "scored tokens, chosen − rejected", "pairs")
    _outline(axes, lengths.gap, GAP, None)
    axes.axvline(0, color="black", linewidth=1.0)
    axes.axvline(lengths.gap.mean, color=CHOSEN, linestyle="--", linewidth=1.6, label=f"mean {lengths.gap.mean:+.1f}")
    end = max(abs(lengths.gap.percentiles[1]), abs(lengths.gap.percentiles[_TAIL])) * _CUT_OFF + lengths.gap.histogram.width
    axes.set_xlim(-end, end)
    axes.legend()
    return figure
