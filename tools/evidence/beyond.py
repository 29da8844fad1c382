"""The page on combinations: each beside its parents in length and score, with intervals corrected for their number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_align.comparison.numbers import t_interval
from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from tools.evidence.intervals import compare, with_interval
from tools.evidence.sweeps import RunNumbers

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


def by_method(runs: Sequence[RunNumbers]) -> dict[str, dict[int, RunNumbers]]:
    """Return seed → run for each method, in the order of ``PARENTS``."""
    found: dict[str, dict[int, RunNumbers]] = {name: {} for name in PARENTS}
    for run in runs:
        found[method(run)][run.seed] = run
    return {name: seeds for name, seeds in found.items() if seeds}


def table(runs: Sequence[RunNumbers]) -> str:
    """Return length, score and KL of each method, and its paired differences to its parent."""
    methods = by_method(runs)
    pairs = {name: PARENTS[name] for name in methods if PARENTS[name] in methods}
    differences = {
        f"{axis}/{name}": [
            final(run, axis) - final(methods[parent][seed], axis) for seed, run in methods[name].items()
        ]
        for axis in ("score", "length")
        for name, parent in pairs.items()
        if parent is not None
    }
    tested = compare(differences)
    heads = ("method", "seeds", "length", "true score", "KL", "beside", "score −", "p (Holm)", "length −", "p (Holm)")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, seeds in methods.items():
        cells: list[Any] = [len(seeds)]
        cells += [with_interval(t_interval([final(run, axis) for run in seeds.values()])) for axis in AXES]
        if name in pairs:
            score, length = tested[f"score/{name}"], tested[f"length/{name}"]
            cells += [pairs[name], score, f"{score.holm:.2f}", length, f"{length.holm:.2f}"]
        lines.append("| " + " | ".join(map(str, [name, *cells, *[""] * (len(heads) - 1 - len(cells))])) + " |")
    return "\n".join(lines)


AXES = ("length", "score", "kl")


def draw(runs: Sequence[RunNumbers], file: Path) -> None:
    """Draw every method in the plane of length and score, with an arrow from its parent."""
    methods = by_method(runs)
    means = {
        name: [t_interval([final(run, axis) for run in own.values()]) for axis in AXES[:2]]
        for name, own in methods.items()
    }
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(9, 6))
        ax = figure.subplots()
        for name, (length, score) in means.items():
            parent = means.get(PARENTS[name] or "")
            colour = CHOSEN if parent is None else REJECTED
            errors = [[(each.high or each.value) - each.value] for each in (score, length)]
            ax.errorbar([length.value], [score.value], *errors, color=colour, marker="o", elinewidth=0.7)
            ax.annotate(name, (length.value, score.value), (5, 4), textcoords="offset points", fontsize=9)
            if parent is not None:
                arrow = {"arrowstyle": "->", "color": GUIDE}
                ax.annotate("", (length.value, score.value), (parent[0].value, parent[1].value), arrowprops=arrow)
        ax.set(xlabel="length of responses (tokens)", ylabel="true score")
        ax.set_title("combinations (orange) and their parents (blue)")
        figure.savefig(file)
