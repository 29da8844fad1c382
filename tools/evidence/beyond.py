"""The page on combinations: each beside its parents in length and score, with intervals corrected for their number."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lit_align.comparison.numbers import t_interval
from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from tools.evidence.forest import LEAST_SEEDS, draw_forest
from tools.evidence.intervals import compare, with_interval
from tools.evidence.sweeps import RunNumbers

Numbers = NDArray[np.float64]
AXES = ("length", "score", "kl")
Methods = dict[str, dict[int, RunNumbers]]
PARENTS: dict[str, str | None] = {
    "dpo": None,
    "averaged dpo": None,
    "ipo, β 0.1": None,
    "ipo, β 5": "ipo, β 0.1",
    "simpo": None,
    "matching": None,
    "sr_dpo": "dpo",
    "averaged Sr-DPO": "averaged dpo",
    "SimPO + refinement": "simpo",
    "averaged matching": "matching",
    "votes, dpo": "dpo",
    "votes, averaged dpo": "averaged dpo",
}
"""Name of a method → what it is compared with; None for the parents themselves."""
LABELS = {
    **dict.fromkeys(("dpo", "simpo", "matching"), (-5, -11)),
    "votes, dpo": (-5, 4),
    "averaged dpo": (5, -4),
    "ipo, β 0.1": (5, -11),
}
"""Name of a method → where its label is in the figure, in points from its mark; others are on the upper right."""


def split_votes(folder: Path, target: Path) -> None:
    """Write the training pairs of a world with several raters without their votes."""
    target.mkdir(parents=True, exist_ok=True)
    rows = map(json.loads, (folder / "train.jsonl").read_text("utf-8").splitlines())
    kept = [{key: value for key, value in row.items() if key != "preference_probability"} for row in rows]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    (target / "train.jsonl").write_text(text, "utf-8")


def method(run: RunNumbers) -> str:
    """Return the name of a run's method in ``PARENTS``."""
    values = run.values
    objective = values["model.objective"]
    refines, averages = "data.quality_prompt" in values, values.get("model.objective.averaging") == "Mean"
    if objective == "PreferenceObjective" and averages:
        free = values.get("model.objective.regularizer") == "Entropy"
        return ("SimPO + refinement" if free else "averaged Sr-DPO") if refines else "averaged matching"
    beta = f"{float(values['model.objective.beta']):g}"
    votes = "votes, " if "votes" in str(values["data.train"]) else ""
    names = {"averaged_dpo": "averaged dpo", "direct_preference_matching": "matching", "ipo": f"ipo, β {beta}"}
    return votes + names.get(objective, objective)


def final(run: RunNumbers, name: str) -> float:
    """Return length, score or KL of a run's final policy."""
    if name == "kl":
        return float(run.final["kl"])
    return float(run.steps[max(run.steps, key=int)][name])


def by_method(runs: Sequence[RunNumbers]) -> Methods:
    """Return seed → run for each method, in the order of ``PARENTS``."""
    found: dict[str, dict[int, RunNumbers]] = {name: {} for name in PARENTS}
    for run in runs:
        found[method(run)][run.seed] = run
    return {name: seeds for name, seeds in found.items() if seeds}


def tables(runs: Sequence[RunNumbers]) -> dict[str, str]:
    """Return the tables of the page by the names of their marks."""
    return {"settings": table(runs)}


def table(runs: Sequence[RunNumbers]) -> str:
    """Return length, score and KL of each method, and its paired differences to its parent, by seed and by prompt."""
    methods = by_method(runs)
    by_seed, by_prompt = compare(differences(methods, mean)), compare(differences(methods, over_prompts))
    heads = ["method", "seeds", *AXES, "beside"]
    for axis in AXES[:2]:
        heads += [f"{axis} −, over seeds", "p (Holm)", f"{axis} −, over prompts", "p (Holm)"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, seeds in methods.items():
        cells = [name, str(len(seeds))]
        cells += [with_interval(t_interval([final(run, axis) for run in seeds.values()])) for axis in AXES]
        cells.append(PARENTS[name] or "")
        for axis in AXES[:2]:
            for tested in (by_seed, by_prompt):
                each = tested.get((axis, name))
                cells += [str(each), each.corrected] if each else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(methods: Methods, values: Callable[[Numbers], list[float]]) -> dict[tuple[str, str], list[float]]:
    """Return the differences of every method to its parent, of score and of length.

    Args:
        methods: from `by_method`.
        values: from the differences of all prompts, [seed, prompt], to what is tested.
    """
    found = {}
    for name, seeds in methods.items():
        parents = methods.get(PARENTS[name] or "", {})
        shared = [seed for seed in seeds if seed in parents]
        for axis in AXES[:2] if shared else ():
            own, other = (
                np.array([each[seed].final[axis] for seed in shared], dtype=float) for each in (seeds, parents)
            )
            found[axis, name] = values(own - other)
    return found


def mean(cells: Numbers) -> list[float]:
    """Return the mean difference of each seed."""
    return list(cells.mean(axis=1))


def over_prompts(cells: Numbers) -> list[float]:
    """Return the difference on each prompt, a mean over seeds."""
    return list(cells.mean(axis=0))


def draw(runs: Sequence[RunNumbers], file: Path) -> None:
    """Draw every method in the plane of length and score, with an arrow from its parent."""
    methods = by_method(runs)
    means = {
        name: [t_interval([final(run, axis) for run in own.values()]) for axis in AXES[:2]]
        for name, own in methods.items()
    }
    by_seed, by_prompt = compare(differences(methods, mean)), compare(differences(methods, over_prompts))
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(15, 6), layout="constrained")
        ax, forest = figure.subplots(1, 2, width_ratios=(3, 2))
        rows = {
            f"{name}\n− {PARENTS[name]}": (each, by_prompt[axis, name])
            for (axis, name), each in by_seed.items()
            if axis == "score"
        }
        draw_forest(forest, rows)
        forest.set(xlabel="true score − the parent's", title="right of 0: better than its parent")
        for name, (length, score) in means.items():
            parent = means.get(PARENTS[name] or "")
            colour = CHOSEN if parent is None else REJECTED
            drawn = score.n >= LEAST_SEEDS
            errors = [[(each.high or each.value) - each.value if drawn else 0.0] for each in (score, length)]
            ax.errorbar([length.value], [score.value], *errors, color=colour, marker="o", elinewidth=0.7)
            dx, dy = LABELS.get(name, (5, 4))
            how = {"textcoords": "offset points", "fontsize": 9, "ha": "left" if dx > 0 else "right"}
            ax.annotate(name, (length.value, score.value), (dx, dy), **how)
            if parent is not None:
                arrow = {"arrowstyle": "->", "color": GUIDE}
                ax.annotate("", (length.value, score.value), (parent[0].value, parent[1].value), arrowprops=arrow)
        ax.set(xlabel="length of responses (tokens)", ylabel="true score")
        ax.set_title("combinations (orange) and their parents (blue)")
        figure.savefig(file)
