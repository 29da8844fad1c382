"""Figures of what a policy or a reward model prefers, against what it should."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from lit_align.metrics.calibration import BINS, MatchingDivergence, Reliability

SCORES, POLICY = CHOSEN, REJECTED


def draw_matching(panels: Mapping[str, MatchingDivergence], file: Path) -> Path:
    """Draw, for each policy, the spread of its preferences, and its mean preference at each preference of the scores.

    The upper row shows the share of pairs by ``σ(r₁ - r₂)`` and by ``σ(log π₁ - log π₂)``: a policy that has collapsed
    has its pairs at 0 and 1. The lower row is the calibration curve; a policy that matches lies on the diagonal.

    Args:
        panels: name of a policy → the pairs that it was seen on.
        file: where the figure goes; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.2 * max(1, len(panels)), 5.6))
        axes = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey="row")
        for column, (name, metric) in enumerate(panels.items()):
            _spread(axes[0, column], metric)
            _curve(axes[1, column], metric)
            divergence = metric.compute()
            axes[0, column].set_title(f"{name}\nD2 {float(divergence['d2']):.3f}" if divergence else name)
        axes[0, 0].set_ylabel("share of pairs")
        axes[1, 0].set_ylabel("policy's preference")
        axes[0, 0].legend()
        figure.supxlabel("preference for the first of two responses")
        figure.savefig(file)
    return file


def draw_reliability(reliability: Reliability, error: float, file: Path) -> Path:
    """Draw how often the side that a reward model finds likelier is the preferred one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.2, 4.2))
        axes = figure.subplots()
        _diagonal(axes, 0.5)
        curve = np.array(reliability.curve()).reshape(-1, 2)
        axes.plot(curve[:, 0], curve[:, 1], "o-", color=POLICY)
        axes.set(xlabel="probability given to the likelier side", ylabel="share of pairs in which it is preferred")
        axes.set_title(f"expected calibration error {error:.3f}")
        figure.savefig(file)
    return file


def draw_margins(margins: Mapping[str, Any], file: Path) -> Path:
    """Draw a histogram of the reward margins of each bucket of length, on an axis that is finest around 0."""
    file.parent.mkdir(parents=True, exist_ok=True)
    edges, buckets = np.array(margins["edges"]), margins["buckets"]
    ticks = [value for value in (-10.0, -1.0, -0.1, 0.0, 0.1, 1.0, 10.0) if edges[0] <= value <= edges[-1]]
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(2.7 * len(buckets), 2.9))
        axes = figure.subplots(1, len(buckets), squeeze=False, sharex=True, sharey=True)[0]
        for panel, (name, bucket) in zip(axes, buckets.items(), strict=True):
            shares = np.array(bucket["counts"]) / max(bucket["pairs"], 1)
            panel.stairs(shares, np.arange(len(edges)), color=POLICY, fill=True, alpha=0.5)
            panel.axvline(np.interp(0.0, edges, np.arange(len(edges))), color=GUIDE, linestyle="--", linewidth=1)
            panel.set_title(f"chosen is {name.replace('_', ' ')}\n{bucket['pairs']:g} pairs", fontsize=10)
            panel.set_xticks(np.interp(ticks, edges, np.arange(len(edges))), [f"{value:g}" for value in ticks])
        axes[0].set_ylabel("share of pairs")
        figure.supxlabel("reward margin")
        figure.savefig(file)
    return file


def _spread(axes: Axes, metric: MatchingDivergence) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    for counts, label, colour in ((metric.scores, "scores", SCORES), (metric.policy, "policy", POLICY)):
        shares = (counts / counts.sum().clamp_min(1e-12)).tolist()
        axes.stairs(shares, edges, label=label, color=colour, fill=True, alpha=0.35)
        axes.stairs(shares, edges, color=colour)


def _curve(axes: Axes, metric: MatchingDivergence) -> None:
    _diagonal(axes, 0.0)
    filled = metric.curve[metric.curve[:, 0] > 0]
    scores, policy = (filled[:, 1] / filled[:, 0]).tolist(), (filled[:, 2] / filled[:, 0]).tolist()
    axes.plot(scores, policy, "o-", color=POLICY)


def _diagonal(axes: Axes, start: float) -> None:
    axes.plot([start, 1], [start, 1], "--", color=GUIDE, linewidth=1)
    axes.set_xlim(start, 1)
