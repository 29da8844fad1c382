"""Figures of the page on averaging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_align.comparison.numbers import t_interval
from lit_align.data.report.figures import GUIDE, STYLE
from lit_align.evaluation.record import MetricEstimate
from lit_align.testbed.world import SHIPPED
from tools.evidence.averaging import (
    CONTRASTS,
    LENGTH,
    POWERS,
    Aligned,
    closed_forms,
    controlled,
    equal_beta,
    groups,
    main_runs,
    pooled,
)
from tools.evidence.forest import LEAST_SEEDS, draw_forest

COLOURS = {"sum": "#0072b2", "√n": "#009e73", "mean": "#d55e00"}
MARKERS = {"sum": "o", "√n": "s", "mean": "^"}


def draw_plane(runs: Sequence[Aligned], file: Path) -> None:
    """Draw length against true score: closed forms, and both objectives with a curve per averaging along β."""
    main = main_runs(runs)
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(13, 4.6))
        axes = figure.subplots(1, 3)
        _closed_forms(axes[0])
        for ax, contrast in zip(axes[1:], CONTRASTS.values(), strict=True):
            own = [run for run in main if run.contrast == contrast]
            for name in POWERS:
                _curve(ax, [run for run in own if run.averaging == name], name)
            _front(ax, own)
            _start(ax, own)
            ax.set_title(f"{contrast}: after training")
            ax.set_xlabel("length of responses (tokens)")
        _share_limits(axes[1:])
        axes[0].set_ylabel("true score")
        axes[1].legend(loc="lower right")
        figure.savefig(file)


def _closed_forms(ax: Any) -> None:
    for name, optima in closed_forms(SHIPPED.length_bonus).items():
        ax.plot([each.length for each in optima], [each.score for each in optima], color=COLOURS[name], label=name)
        ends = (optima[0], optima[-1])
        ax.plot([each.length for each in ends], [each.score for each in ends], MARKERS[name], color=COLOURS[name])
    ax.set_title("optimum in theory (β 0.1 to 30)")
    ax.set_xlabel("length of responses (tokens)")
    ax.legend(loc="lower right")


def _bar(mean: MetricEstimate) -> float:
    """Return half an interval; 0 below three seeds, where Student's t is wider than the figure."""
    return mean.high - mean.value if mean.high is not None and mean.n >= LEAST_SEEDS else 0.0


def _curve(ax: Any, runs: Sequence[Aligned], name: str) -> None:
    """Draw means with intervals along β, numbered by β, and the way there from the start."""
    settings = sorted(groups(runs), key=lambda own: own[0].beta)
    points = [[t_interval([getattr(run, axis) for run in own]) for axis in ("length", "score")] for own in settings]
    x, y = ([each[axis].value for each in points] for axis in (0, 1))
    errors = [[_bar(each[axis]) for each in points] for axis in (0, 1)]
    for own in settings:
        path = np.mean([run.path for run in own], axis=0)
        ax.plot(path[:, 1], path[:, 2], color=COLOURS[name], alpha=0.25, linewidth=1)
    ax.errorbar(x, y, errors[1], errors[0], color=COLOURS[name], marker=MARKERS[name], label=name, elinewidth=0.7)
    for own, left, up in zip(settings, x, y, strict=True):
        ax.annotate(
            f"{own[0].beta:g}", (left, up), (4, 4), textcoords="offset points", fontsize=8, color=COLOURS[name]
        )


def _front(ax: Any, runs: Sequence[Aligned]) -> None:
    """Draw the Pareto front of the means: no other setting is both shorter and better."""
    means = sorted((np.mean([run.length for run in own]), np.mean([run.score for run in own])) for own in groups(runs))
    best, front = -np.inf, []
    for length, score in means:
        if score > best:
            best = score
            front.append((length, score))
    ax.plot(*zip(*front, strict=True), color=GUIDE, linestyle=":", linewidth=2.5, zorder=0, label="Pareto front")


def _start(ax: Any, runs: Sequence[Aligned]) -> None:
    _, length, score = np.mean([run.path[0] for run in runs], axis=0)
    ax.plot(length, score, "*", color="black", markersize=11, label="before")


def _share_limits(axes: Any) -> None:
    for low_high, setter in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
        limits = [getattr(ax, low_high)() for ax in axes]
        for ax in axes:
            getattr(ax, setter)(min(low for low, _ in limits), max(high for _, high in limits))


def draw_differences(runs: Sequence[Aligned], file: Path) -> None:
    """Draw score and length of √n and of means minus those of sums, for all β together and for each."""
    together, single = pooled(runs).tested(), equal_beta(runs).tested()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(13, 9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, axis, unit in zip(axes, ("score", "length"), ("true score", "tokens"), strict=True):
            rows = {
                key.replace(" | ", ", "): (by_seed[axis, key], by_prompt[axis, key])
                for by_seed, by_prompt in (together, single)
                for where, key in by_seed
                if where == axis
            }
            draw_forest(ax, rows)
            ax.set_xlabel(f"{axis} − that of sums at the same β ({unit})")
        axes[0].set_title("right of 0: averaging is better")
        axes[1].set_title("left of 0: averaging is shorter")
        figure.savefig(file)


def draw_controls(runs: Sequence[Aligned], file: Path) -> None:
    """Draw score and length against KL, the length-controlled win rate, and the effect of the length bonus."""
    main = main_runs(runs)
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(13, 8))
        axes = figure.subplots(2, 3)
        for row, contrast in enumerate(CONTRASTS.values()):
            own = [run for run in main if run.contrast == contrast]
            for name in POWERS:
                curve = [run for run in own if run.averaging == name]
                _against_kl(axes[row, 0], curve, name, "score")
                _against_kl(axes[row, 1], curve, name, "length")
            axes[row, 0].set(title=f"{contrast}: at equal KL", xlabel="KL from the start (nats)", ylabel="true score")
            axes[row, 1].set(
                title=f"{contrast}: at equal KL", xlabel="KL from the start (nats)", ylabel="length (tokens)"
            )
        axes[0, 0].legend()
        _win_rates(axes[0, 2], main)
        _bonus(axes[1, 2], runs)
        figure.savefig(file)


def _against_kl(ax: Any, runs: Sequence[Aligned], name: str, axis: str) -> None:
    settings = sorted(groups(runs), key=lambda own: np.mean([run.kl for run in own]))
    points = [
        (t_interval([run.kl for run in own]), t_interval([getattr(run, axis) for run in own])) for own in settings
    ]
    errors = [[_bar(each[place]) for each in points] for place in (0, 1)]
    x, y = ([each[place].value for each in points] for place in (0, 1))
    ax.errorbar(x, y, errors[1], errors[0], color=COLOURS[name], marker=MARKERS[name], label=name, elinewidth=0.7)


def _win_rates(ax: Any, runs: Sequence[Aligned]) -> None:
    rates = controlled(runs)
    shift = {"sum": 0.94, "√n": 1.0, "mean": 1.06}
    for (contrast, style), name in ((pair, name) for pair in (("DPO", "-"), ("IPO", "--")) for name in POWERS):
        own = [run for run in runs if (run.contrast, run.averaging) == (contrast, name)]
        settings = sorted(groups(own), key=lambda each: each[0].beta)
        points = [
            t_interval([100 * rates[run.numbers.setting, run.numbers.seed] for run in each]) for each in settings
        ]
        errors = [_bar(each) for each in points]
        x = [each[0].rank * shift[name] for each in settings]
        y = [each.value for each in points]
        label = f"{contrast}, {name}"
        ax.errorbar(
            x, y, errors, color=COLOURS[name], marker=MARKERS[name], linestyle=style, label=label, elinewidth=0.7
        )
    ax.set(xscale="log", title="win rate, length-controlled", ylabel="% against the start")
    ax.set_xlabel(f"β at the scale of sums (divided by {LENGTH:g}^p)")
    ax.axhline(50, color=GUIDE, linewidth=0.8)
    ax.legend(fontsize=8)


def _bonus(ax: Any, runs: Sequence[Aligned]) -> None:
    """Draw how length and score move with the raters' bonus, from none to twice the usual."""
    others = [run for run in runs if run.bonus != SHIPPED.length_bonus]
    kinds = {(run.contrast, run.averaging, run.rank) for run in others}
    for contrast, name, rank in sorted(kinds):
        own = [run for run in runs if (run.contrast, run.averaging, run.rank) == (contrast, name, rank)]
        settings = sorted(groups(own), key=lambda each: each[0].bonus)
        points = [
            [t_interval([getattr(run, axis) for run in each]) for axis in ("length", "score")] for each in settings
        ]
        errors = [[_bar(each[axis]) for each in points] for axis in (0, 1)]
        x, y = ([each[axis].value for each in points] for axis in (0, 1))
        ax.errorbar(x, y, errors[1], errors[0], color=COLOURS[name], marker=MARKERS[name], label=name, elinewidth=0.7)
        for each, left, up in zip(settings, x, y, strict=True):
            ax.annotate(f"{each[0].bonus:g}", (left, up), (4, 4), textcoords="offset points", fontsize=8)
    ax.set(title="DPO by the raters' bonus for length", xlabel="length (tokens)", ylabel="true score")
    if kinds:
        ax.legend()


def draw_tilt(runs: Sequence[Aligned], file: Path) -> None:
    """Draw how much of the log-ratios within pairs the closed form of each averaging explains."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9, 3.8))
        axes = figure.subplots(1, 2, sharey=True)
        for ax, contrast in zip(axes, CONTRASTS.values(), strict=True):
            for place, trained in enumerate(POWERS):
                own = [run for run in main_runs(runs) if (run.contrast, run.averaging) == (contrast, trained)]
                for shift, form in enumerate(POWERS):
                    bar = t_interval(_by_seed(own, form) or [0.0])
                    error = (bar.high or bar.value) - bar.value
                    label = f"of {form}" if place == 0 else None
                    ax.bar(place + 0.27 * (shift - 1), bar.value, 0.25, yerr=error, color=COLOURS[form], label=label)
            ax.set_xticks(range(len(POWERS)), list(POWERS))
            ax.set(title=contrast, xlabel="trained with", ylim=(-0.1, 1.05))
            ax.axhline(1, color=GUIDE, linewidth=0.8, linestyle=":")
        axes[0].set_ylabel("share of variance explained")
        axes[0].legend(title="closed form", fontsize=9)
        figure.savefig(file)


def _by_seed(runs: Sequence[Aligned], form: str) -> list[float]:
    """Return the explained share of each seed, a mean over β."""
    seeds = sorted({run.numbers.seed for run in runs})
    return [float(np.mean([run.tilt[form] for run in runs if run.numbers.seed == seed])) for seed in seeds]
