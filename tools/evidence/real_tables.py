"""Tables and figure of the page on a real model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from lit_align.evaluation.record import MetricEstimate
from lit_align.statistics import pearson_correlation
from tools.evidence.intervals import Comparison, clustered, holm
from tools.evidence.real import (
    AFTER,
    BUCKETS,
    NEUTRAL,
    PAPER,
    PLAIN,
    SCALES,
    SETS,
    Numbers,
    Readings,
    RealPairs,
    vote_share,
)
from tools.evidence.sweeps import RunNumbers

Start = Mapping[tuple[str, str], Readings]
METHODS = {
    "dpo": "dpo, β 0.1",
    "averaged_dpo": "averaged_dpo, β 1.6",
    "votes": "dpo, β 0.1, votes",
    "all": "dpo, β 0.1, all weights",
}
KINDS = ("right", "longer")
LEAST_PROMPTS = 10
"""From which an interval is given: with fewer, those of Student's t mislead."""
COLOURS = {"sum": CHOSEN, "mean": REJECTED}


def method(run: RunNumbers) -> str:
    """Return the name of a run's method in ``METHODS``."""
    if "votes" in str(run.values.get("data.train", "")):
        return METHODS["votes"]
    if "model.lora.rank" not in run.values:
        return METHODS["all"]
    return METHODS[str(run.values["model.objective"])]


def percent(estimate: MetricEstimate) -> str:
    """Return a share in percent with its interval, or with its number of pairs where they are too few for one.

    >>> percent(MetricEstimate(0.5, 0.4, 0.6, 10)), percent(MetricEstimate(0.5, n=4))
    ('50 % (40–60)', '50 % of 4')
    """
    value = f"{100 * estimate.value:.0f} %"
    if estimate.low is None or estimate.high is None:
        return f"{value} of {estimate.n}"
    return f"{value} ({100 * max(0.0, estimate.low):.0f}–{100 * min(1.0, estimate.high):.0f})"


def share(values: Numbers, readings: Readings, where: Any = None) -> MetricEstimate | None:
    """Return the mean of values over pairs with its interval over prompts, if these are enough; None without pairs."""
    kept = np.ones(len(values), dtype=bool) if where is None else where
    if not kept.any():
        return None
    estimate = clustered(values[kept], readings.prompts[kept])[0]
    enough = len(set(readings.prompts[kept].tolist())) >= LEAST_PROMPTS and estimate.low != estimate.high
    return estimate if enough else MetricEstimate(estimate.value, n=estimate.n)


def shown(estimate: MetricEstimate | None) -> str:
    """Return a share, or nothing where there is none."""
    return "" if estimate is None else percent(estimate)


# ── before training ─────────────────────────────────────────────────────────────────────────────────────────────────


def pairs_table(pairs: RealPairs) -> str:
    """Return how many pairs each set has, how long they are by prompts, and how often the votes agree."""
    lines = ["| set | pairs that are short enough | used | distinct prompts |", "|---" * 4 + "|"]
    used = {f"{name}, tested on": own for name, own in pairs.tests.items()} | {"PandaLM, trained on": pairs.train}
    for name, own in sorted(used.items()):
        prompts = len({str(pair.prompt) for pair in own})
        lines.append(f"| {name} | {pairs.available[name.split(',')[0]]} | {len(own)} | {prompts} |")
    split = sum(vote_share(pair) < 1 for pair in pairs.train)
    lost = ", ".join(f"{count} of {name}" for name, count in pairs.unusable.items() if count) or "none"
    lines += ["", f"Rows that are no pairs, such as those with a blank response: {lost}."]
    lines += [f"Of the pairs that are trained on, {split} have a vote that is not for the chosen response."]
    prompts = len({str(pair.prompt) for pair in pairs.judge})
    lines += [f"The reward model is trained on {len(pairs.judge)} other pairs of {prompts} prompts."]
    return "\n".join(lines)


def asked_of(start: Start, name: str) -> dict[str, Readings]:
    """Return what is read of a set before training: log π, plain and prompted, and the shifts by the prompts."""
    plain = start[PLAIN, name]
    asked = {"log π": plain}
    for prompt in (PAPER, NEUTRAL):
        own = start.get((prompt, name))
        if own is not None:
            asked |= {f"log π behind {prompt}": own, f"shift by {prompt}": own - plain}
    return asked


def start_table(start: Start) -> str:
    """Return how often the model favours chosen responses before training, and what their lengths alone would."""
    heads = ["set", "by", "scale", "right", *BUCKETS, "favours the longer", "r with the difference in length"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in (name for name in SETS if (PLAIN, name) in start):
        plain = start[PLAIN, name]
        alone = replace(plain, sums=plain.tokens)
        lines.append(f"| {name} | length alone | | " + " | ".join(_cells([alone], "sum")) + " |")
        for asked, own in asked_of(start, name).items():
            for scale in SCALES:
                lines.append(f"| {name} | {asked} | {scale} | " + " | ".join(_cells([own], scale)) + " |")
    return "\n".join(lines)


def _cells(seeds: Sequence[Readings], scale: str) -> list[str]:
    first = seeds[0]
    right, longer = (mean_of(kind, scale, seeds) for kind in ("right", "longer"))
    cells = [shown(share(right, first))]
    cells += [shown(share(right, first, first.buckets == place)) for place in range(len(BUCKETS))]
    cells.append(shown(share(longer, first, first.gaps != 0)))
    r = np.mean([pearson_correlation(each.margins(scale), each.gaps) or 0.0 for each in seeds])
    return [*cells, f"{r:.2f}"]


# ── after training ──────────────────────────────────────────────────────────────────────────────────────────────────


def rewards(runs: Sequence[RunNumbers], start: Start) -> dict[tuple[str, str], list[Readings]]:
    """Return set and method → the implicit rewards of each seed."""
    by_method: dict[tuple[str, str], list[Readings]] = {}
    for run in sorted(runs, key=lambda run: (list(METHODS.values()).index(method(run)), run.seed)):
        for name in AFTER:
            before = start[PLAIN, name]
            after = replace(before, sums=np.array(run.final[name]))
            by_method.setdefault((name, method(run)), []).append(after - before)
    return by_method


def mean_of(kind: str, scale: str, own: Sequence[Readings]) -> Numbers:
    """Return what is asked of each pair, ``right`` or ``longer``, as the mean over seeds."""
    return np.mean([getattr(each, kind)(scale) for each in own], axis=0)


def after_table(runs: Sequence[RunNumbers], start: Start) -> str:
    """Return the accuracy of implicit rewards and how they side with the longer response; the mean over seeds."""
    heads = ["set", "objective", "seeds", "scale", "right", *BUCKETS, "favours the longer"]
    heads += ["r with the difference in length", "right, each seed"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (name, own), seeds in sorted(rewards(runs, start).items(), key=lambda item: AFTER.index(item[0][0])):
        for scale in SCALES:
            cells = _cells(seeds, scale)
            cells.append(", ".join(f"{100 * each.right(scale).mean():.0f}" for each in seeds))
            lines.append(f"| {name} | {own} | {len(seeds)} | {scale} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(runs: Sequence[RunNumbers], start: Start) -> dict[tuple[str, str, str], dict[str, Comparison]]:
    """Return set, method and scale → ``right`` and ``longer`` minus those of ``dpo``, in points, paired by pair."""
    by_method = rewards(runs, start)
    tested = {}
    for (name, own), seeds in by_method.items():
        base = by_method.get((name, METHODS["dpo"]))
        if base is None or own == METHODS["dpo"]:
            continue
        for (scale, (mine, other)), kind in product(_scales_of(own).items(), KINDS):
            kept = base[0].gaps != 0 if kind == "longer" else base[0].tokens[:, 0] > 0
            points = 100 * (mean_of(kind, mine, seeds) - mean_of(kind, other, base))
            tested[name, own, scale, kind] = clustered(points[kept], base[0].prompts[kept])
    corrected = holm({key: p for key, (_, p) in tested.items()})
    table: dict[tuple[str, str, str], dict[str, Comparison]] = {}
    for (name, own, scale, kind), (estimate, p) in tested.items():
        table.setdefault((name, own, scale), {})[kind] = Comparison(estimate, p, corrected[name, own, scale, kind])
    return table


def _scales_of(name: str) -> dict[str, tuple[str, str]]:
    """Return name → scale of a method's rewards, and of those of ``dpo`` beside them."""
    scales = {scale: (scale, scale) for scale in SCALES}
    return scales | ({"each its own": ("mean", "sum")} if name == METHODS["averaged_dpo"] else {})


def cost(runs: Path) -> str:
    """Return what the page has cost so far: CPU time of reading, which is measured, and wall time of training."""
    rows = [json.loads(line) for file in runs.rglob("readings.jsonl") for line in file.read_text("utf-8").splitlines()]
    cells = [json.loads(file.read_text("utf-8")) for file in runs.glob("*/seed=*/*/cell.json")]
    reading, training = (sum(each.get("seconds", 0) for each in own) / 60 for own in (rows, cells))
    read = f"{reading:.0f} minutes of CPU time to read {len(rows)} pairs"
    return f"{read}, and {training:.0f} minutes to train {len(cells)} runs"


def difference_table(runs: Sequence[RunNumbers], start: Start) -> str:
    """Return the paired differences to ``dpo`` in percentage points, with p values corrected for their number."""
    heads = ["set", "objective", "scale", "right − dpo's", "p (Holm)", "favours the longer − dpo's", "p (Holm)"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for names, kinds in differences(runs, start).items():
        cells = [cell for kind in KINDS for cell in (str(kinds[kind]), kinds[kind].corrected)]
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    return "\n".join(lines)


# ── the figure ──────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(runs: Sequence[RunNumbers], start: Start, file: Path) -> None:
    """Draw what the model and the quality prompt know before training, and how rewards side with length after it."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(13, 9), layout="constrained")
        axes = figure.subplots(2, 2)
        _draw_start(axes[0, 0], start, "log π", "Before training: is the chosen response likelier?")
        _draw_start(axes[0, 1], start, f"shift by {PAPER}", "Does the quality prompt favour the chosen response?")
        own = rewards(runs, start)
        _draw_after(axes[1, 0], own, "longer", "After training: does the reward favour the longer response?")
        _draw_after(axes[1, 1], own, "right", "After training: does the reward favour the chosen response?")
        figure.suptitle("SmolLM2-135M-Instruct, 4-bit weights, dequantised; 95 % intervals over prompts")
        figure.savefig(file, dpi=120)


def _draw_start(axis: Any, start: Start, asked: str, title: str) -> None:
    names = [name for name in SETS if (PLAIN, name) in start and asked in asked_of(start, name)]
    for place, name in enumerate(names):
        own = asked_of(start, name)[asked]
        for shift, scale in zip((-0.1, 0.1), SCALES, strict=True):
            _point(
                axis, place + shift, share(own.right(scale), own), COLOURS[scale], None if place else f"by {scale}s"
            )
        wins = 100 * float((np.sign(own.gaps) / 2 + 0.5).mean())
        label = None if place else "always the longer"
        axis.plot([place - 0.3, place + 0.3], [wins, wins], color=GUIDE, linewidth=2, label=label)
    _finish(axis, names, title, "pairs (%)")


def _draw_after(axis: Any, own: Mapping[tuple[str, str], Sequence[Readings]], kind: str, title: str) -> None:
    cells = [(name, each, scale) for name in AFTER for each in METHODS.values() for scale in SCALES]
    cells = [cell for cell in cells if cell[:2] in own]
    labels, places = [], []
    for place, (name, each, scale) in enumerate(cells):
        first, spread = own[name, each][0], place + 0.6 * AFTER.index(name)
        kept = first.gaps != 0 if kind == "longer" else None
        estimate = share(mean_of(kind, scale, own[name, each]), first, kept)
        _point(axis, spread, estimate, COLOURS[scale], f"by {scale}s" if place < len(SCALES) else None)
        labels.append(f"{name}\n{each}".replace(", ", "\n") if scale == SCALES[0] else "")
        places.append(spread)
    _finish(axis, labels, title, "pairs (%)", places)


def _point(axis: Any, place: float, estimate: MetricEstimate | None, colour: str, label: str | None) -> None:
    if estimate is None:
        return
    half = 100 * (estimate.high - estimate.value) if estimate.high is not None else 0.0
    axis.errorbar([place], [100 * estimate.value], [half], marker="o", color=colour, label=label, linestyle="none")


def _finish(axis: Any, labels: Sequence[str], title: str, unit: str, places: Sequence[float] | None = None) -> None:
    axis.axhline(50, color=GUIDE, linestyle=":")
    axis.set_xticks(range(len(labels)) if places is None else places, labels, fontsize=8)
    axis.set(ylim=(0, 100), ylabel=unit, title=title)
    if labels:
        axis.legend(frameon=False, loc="lower right")
