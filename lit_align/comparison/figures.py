"""The figures of a comparison, as plain data for plotly.js; the page gives them the colours of text and background."""

from __future__ import annotations

import html
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.comparison.numbers import Plane, PlanePoint, calibration_points, with_front
from lit_align.comparison.runs import Curve, EvaluatedModel, Run
from lit_align.comparison.tables import words_for
from lit_align.evaluation.record import judged_name

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#9467bd", "#a6761d")
"""Of the runs, in their order: the palette of Okabe and Ito without black and yellow, and two more."""
DASHES = ("solid", "dash", "dot")
"""Of the runs behind the first eight, sixteen: they repeat the colours."""
CURVES = (
    "loss",
    "rewards/accuracies",
    "rewards/margins",
    "log_probs/chosen/mean",
    "displacement/chosen/fell",
    "lengths/margin_correlation",
    "lengths/score_correlation",
    "calibration/ece",
    "calibration/brier",
    "eval/win_rate",
    "eval/score",
    "eval/length/tokens",
    "samples/policy/score",
    "samples/policy/length/mean",
    "score",
    "reward",
    "length",
    "eos_rate",
    "entropy",
    "kl",
    "matching/d1",
    "matching/d2",
    "matching/given/d2",
    "grad_norm",
)
"""Metrics with a figure of their own; those of training and validation share one."""
MAX_POINTS = 400
"""Points of a training curve that are drawn."""
_FRONT = "rgba(128,128,128,0.9)"


@dataclass(frozen=True)
class PlotlyFigure:
    """A figure for plotly.js.

    Args:
        title: over it.
        note: under it.
        data: traces.
        layout: axes.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    note: str = ""


def run_style(number: int) -> tuple[str, str]:
    """Return colour and dash of a run by its place among the runs."""
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def plane_figure(plane: Plane, names: Sequence[str]) -> PlotlyFigure:
    """Return the length-score plane with a curve for each run, its steps along it, and the Pareto front."""
    traces = []
    for number, name in enumerate(names):
        points = [point for point in plane.points if point.name == name]
        if points:
            traces.append(_path(points, *run_style(number), plane))
    front = plane.front
    if len(front) > 1:
        traces.append(
            {
                "x": [point.length for point in front],
                "y": [point.score for point in front],
                "name": "Pareto front",
                "mode": "lines",
                "line": {"color": _FRONT, "width": 1.5, "dash": "dot", "shape": "hv"},
                "hoverinfo": "skip",
            }
        )
    layout = _layout(words_for(plane.length), words_for(plane.score))
    missing = f" No such points: {', '.join(plane.without)}." if plane.without else ""
    diverges = plane.length.endswith("kl")
    better = "less divergence from the reference" if diverges else "fewer tokens"
    note = (
        f"Up and to the left is better: a higher score with {better}. Large dots are last steps, the dotted line is "
        f"the Pareto front.{missing}"
    )
    title = "Divergence and score over training" if diverges else "Length and score over training"
    return PlotlyFigure(title, traces, layout, note)


def _path(points: Sequence[PlanePoint], colour: str, dash: str, plane: Plane) -> dict[str, Any]:
    sizes = [6] * (len(points) - 1) + [13]
    return {
        "x": [point.length for point in points],
        "y": [point.score for point in points],
        "text": [f"step {point.step}" for point in points],
        "name": html.escape(points[0].name),
        "mode": "lines+markers",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"size": sizes, "color": colour},
        "hovertemplate": f"%{{text}}<br>{words_for(plane.length)} %{{x:.4g}}, {words_for(plane.score)} %{{y:.4g}}",
    }


def evaluated_figures(models: Sequence[EvaluatedModel], names: Sequence[str]) -> list[PlotlyFigure]:
    """Return length and score of evaluated models with their 95 % intervals, a figure for each judge."""
    figures = (_evaluated_figure(models, names, judge) for judge in judges_of(models))
    return [figure for figure in figures if figure is not None]


def judges_of(models: Sequence[EvaluatedModel]) -> list[str]:
    """Return the names of the judges of evaluations; that of the first one is empty."""
    further = (name for model in models for name in model.record.settings.get("judges") or {})
    return list(dict.fromkeys(["", *further]))


def _evaluated_figure(models: Sequence[EvaluatedModel], names: Sequence[str], judge: str) -> PlotlyFigure | None:
    plane = evaluated_plane(models, judge)
    if plane is None:
        return None
    by_name = {model.name: model for model in models}
    of_run = Counter(by_name[point.name].run for point in plane.points)
    traces = []
    for point in plane.points:
        model = by_name[point.name]
        is_known_by_colour = model.run in names and of_run[model.run] == 1
        colour = run_style(names.index(model.run))[0] if model.run in names else "#808080"
        metrics = model.record.metrics
        score, length = (metrics[plane.score.removeprefix("eval/")], metrics[plane.length.removeprefix("eval/")])
        traces.append(
            {
                "x": [point.length],
                "y": [point.score],
                "error_x": _bars(length.value, length.low, length.high),
                "error_y": _bars(score.value, score.low, score.high),
                "name": html.escape(model.name),
                "mode": "markers+text",
                "text": ["" if is_known_by_colour else html.escape(model.name)],
                "textposition": "top center",
                "cliponaxis": False,
                "marker": {"size": 11, "color": colour, "symbol": "diamond" if point.in_front else "circle"},
                "hovertemplate": "length %{x:.4g}, score %{y:.4g}",
            }
        )
    note = "In the colours of the runs; diamonds are on the Pareto front, bars are 95 % intervals."
    return PlotlyFigure(
        f"Length and score as evaluated{f', by {judge}' if judge else ''}",
        traces,
        _layout(words_for(plane.length), words_for(plane.score)),
        note,
    )


def _bars(value: float, low: float | None, high: float | None) -> dict[str, Any]:
    if low is None or high is None:
        return {"visible": False}
    return {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low], "thickness": 1}


def evaluated_plane(models: Sequence[EvaluatedModel], judge: str = "") -> Plane | None:
    """Return length and score of evaluated models; None if no model has both.

    The score is the length-controlled win rate where one was computed, else the win rate, else the mean score.

    Args:
        models: of all evaluations.
        judge: name of a further judge; empty for the first one.
    """
    length = "length/tokens"
    for score in (judged_name(judge, name) for name in ("win_rate/length_controlled", "win_rate", "score")):
        points = [
            PlanePoint(model.name, None, model.record.metrics[length].value, model.record.metrics[score].value)
            for model in models
            if length in model.record.metrics and score in model.record.metrics
        ]
        if points:
            return Plane(f"eval/{score}", f"eval/{length}", with_front(points))
    return None


def curve_figures(runs: Sequence[Run]) -> list[PlotlyFigure]:
    """Return a figure for each metric of ``CURVES`` that a run has: validation with dots, training thin."""
    figures = []
    for metric in CURVES:
        own = [
            name for name in (metric, f"train/{metric}", f"val/{metric}") if any(name in run.curves for run in runs)
        ]
        traces = [
            trace
            for number, run in enumerate(runs)
            for name in own
            if name in run.curves
            for trace in [_line(run, run.curves[name], name.startswith("train/"), number)]
        ]
        if traces and any(len(trace["x"]) > 1 for trace in traces):
            figures.append(
                PlotlyFigure(
                    words_for(f"val/{metric}" if f"val/{metric}" in own else own[0]), traces, _layout("step", "")
                )
            )
    return figures


def _line(run: Run, curve: Curve, is_training: bool, number: int) -> dict[str, Any]:
    colour, dash = run_style(number)
    steps = thinned(list(curve))
    return {
        "x": steps,
        "y": [curve[step] for step in steps],
        "name": html.escape(f"{run.name}{', training' if is_training else ''}"),
        "mode": "lines" if is_training else "lines+markers",
        "line": {"color": colour, "width": 1 if is_training else 2, "dash": dash},
        "opacity": 0.45 if is_training else 1,
        "hovertemplate": "step %{x}: %{y:.4g}",
    }


def thinned(steps: Sequence[int]) -> list[int]:
    """Return at most ``MAX_POINTS`` steps, evenly taken, the last among them.

    >>> len(thinned(range(1001))), thinned(range(1001))[-1], thinned([1, 2])
    (334, 1000, [1, 2])
    """
    every = -(-len(steps) // MAX_POINTS)
    return list(steps[::-1][::every][::-1])


def margin_figures(runs: Sequence[Run]) -> list[PlotlyFigure]:
    """Return, for each bucket of length, a histogram of the reward margins of each run."""
    known = [(number, run) for number, run in enumerate(runs) if run.margins]
    buckets = dict.fromkeys(name for _, run in known for name in run.margins["buckets"])
    figures = []
    for bucket in buckets:
        traces = []
        for number, run in known:
            counts = run.margins["buckets"].get(bucket)
            if counts and counts["pairs"]:
                traces.append(_steps(run, run.margins["edges"], counts, number))
        if traces:
            figures.append(
                PlotlyFigure(
                    f"chosen is {bucket.replace('_', ' ')}", traces, _margin_layout(known[0][1].margins["edges"])
                )
            )
    return figures


def _margin_layout(edges: Sequence[float]) -> dict[str, Any]:
    """Return axes on which all bins are equally wide, however wide they are in margins."""
    shown = [value for value in (-10, -1, -0.1, 0, 0.1, 1, 10) if edges[0] <= value <= edges[-1]]
    layout = _layout("reward margin", "share of pairs")
    layout["xaxis"]["tickvals"] = [_place(edges, value) for value in shown]
    layout["xaxis"]["ticktext"] = [f"{value:g}" for value in shown]
    zero = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": _FRONT, "width": 1}}
    layout["shapes"] = [{**zero, "x0": _place(edges, 0.0), "x1": _place(edges, 0.0)}]
    return layout


def _place(edges: Sequence[float], value: float) -> float:
    """Return where a value stands among edges, in bins from the first.

    >>> _place([-2.0, 0.0, 1.0], 0.25)
    1.25
    """
    bin_of = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
    return bin_of + (value - edges[bin_of]) / (edges[bin_of + 1] - edges[bin_of])


def _steps(run: Run, edges: Sequence[float], bucket: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the outline of a histogram, from the first bin that is not empty to the last."""
    colour, dash = run_style(number)
    shares = [count / bucket["pairs"] for count in bucket["counts"]]
    filled = [place for place, share in enumerate(shares) if share]
    first, last = filled[0], filled[-1]
    return {
        "x": [first, *range(first, last + 2)],
        "text": [f"{edges[place]:.3g}" for place in (first, *range(first, last + 2))],
        "y": [0, *shares[first : last + 1], 0],
        "name": html.escape(f"{run.name}, n = {bucket['pairs']:g}"),
        "mode": "lines",
        "line": {"color": colour, "width": 1.5, "dash": dash, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": f"{colour}22",
        "hovertemplate": "from %{text}: %{y:.1%}",
    }


def calibration_figure(runs: Sequence[Run]) -> PlotlyFigure | None:
    """Return how often each run's rewards are right, by how sure they are; None if no run has counted that."""
    diagonal = {"x": [0.5, 1], "y": [0.5, 1], "mode": "lines", "name": "calibrated", "hoverinfo": "skip"}
    traces: list[dict[str, Any]] = [{**diagonal, "line": {"color": _FRONT, "width": 1.5, "dash": "dot"}}]
    for number, run in enumerate(runs):
        points = calibration_points(run)
        colour, dash = run_style(number)
        if points:
            traces.append(
                {
                    "x": [chance for chance, _, _ in points],
                    "y": [right for _, right, _ in points],
                    "text": [f"{pairs} pairs" for _, _, pairs in points],
                    "name": html.escape(run.name),
                    "mode": "lines+markers",
                    "line": {"color": colour, "width": 2, "dash": dash},
                    "hovertemplate": "%{text}: probability %{x:.3g}, right %{y:.3g}",
                }
            )
    layout = _layout("σ(margin), taken for a probability", "share of pairs that are right")
    return PlotlyFigure("Calibration of the rewards", traces, layout) if len(traces) > 1 else None


def _layout(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
