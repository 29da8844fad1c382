"""The page on preference matching: length by closed forms, and PPO with GAE beside leave-one-out on a small world."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from lit_align.comparison.numbers import t_interval
from lit_align.data.report.figures import CHOSEN, GUIDE, REJECTED, STYLE
from lit_align.objectives.regularizer import KL, ConditionalMatching
from lit_align.online import (
    GAE,
    RLHF,
    Advantage,
    Clipped,
    KLAfter,
    LeaveOneOut,
    MeanPenalty,
    NoLengthControl,
    ResponseSum,
    TokenCost,
)
from lit_align.testbed.operators import total_variation
from tests.online.test_rlhf import train
from tests.online.tree import problem, whole
from tests.theory.lengths import Toy
from tools.evidence.intervals import with_interval

LIMITS = (10, 32, 64, 128, 256, 512)
WAYS = {
    "standard KL": (KL(), NoLengthControl()),
    "conditional matching, α = 0.1": (ConditionalMatching(0.1), NoLengthControl()),
    "conditional matching, α = 0.4": (ConditionalMatching(0.4), NoLengthControl()),
    "α = 0.1, `TokenCost(0.5)`": (ConditionalMatching(0.1), TokenCost(0.5)),
    "α = 0.1, `TokenCost(1)`": (ConditionalMatching(0.1), TokenCost(1.0)),
    "α = 0.1, `MeanPenalty`": (ConditionalMatching(0.1), MeanPenalty()),
    "α = 0.1, `KLAfter(8)`": (ConditionalMatching(0.1), KLAfter(8)),
}
ADVANTAGES: dict[str, Advantage] = {"PPO, GAE": GAE(), "PPO, leave-one-out": LeaveOneOut()}
PROBLEMS = {"standard RLHF": KL(), "conditional matching": ConditionalMatching(0.3)}


def length_table() -> str:
    """Return mean length and the share that is cut, for each way and two limits."""
    lines = ["| optimum of | mean length, limit 10 | limit 64 | limit 512 | cut at 64 |", "|---" * 5 + "|"]
    for name, (regularizer, length) in WAYS.items():
        means = [Toy(regularizer, length, limit).mean_length() for limit in (10, 64, 512)]
        cut = Toy(regularizer, length, 64).lengths()[1]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.1f}" for mean in means) + f" | {100 * cut:.0f} % |")
    return "\n".join(lines)


def draw_lengths(file: Path) -> None:
    """Draw the mean length and the share of cut responses along the limit of length."""
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        marks = iter("osx^vD*")
        for name, (regularizer, length) in WAYS.items():
            toys = [Toy(regularizer, length, limit) for limit in LIMITS]
            free = isinstance(length, NoLengthControl)
            colour = GUIDE if regularizer == KL() else REJECTED if free else CHOSEN
            style = {"color": colour, "marker": next(marks), "markersize": 5, "linewidth": 1.2}
            label = name.replace("`", "")
            left.plot(LIMITS, [toy.mean_length() for toy in toys], label=label, **style)
            right.plot(LIMITS, [100 * toy.lengths()[1] for toy in toys], label=label, **style)
        left.plot(LIMITS, LIMITS, color=GUIDE, linestyle=":", linewidth=1)
        left.annotate("the limit itself", (128, 128), (-70, 6), textcoords="offset points", fontsize=9)
        left.set(xscale="log", yscale="log", xlabel="limit of length (tokens)", ylabel="mean length of the optimum")
        right.set(xscale="log", xlabel="limit of length (tokens)", ylabel="responses cut at the limit (%)")
        for axis in (left, right):
            axis.set_xticks(LIMITS, list(map(str, LIMITS)))
            axis.minorticks_off()
        left.legend(fontsize=8, frameon=False)
        figure.suptitle(
            "Matching alone runs to the limit of length; KL and a control that is large enough do not (toy, r = 0)"
        )
        figure.savefig(file, dpi=150)


def advantage_table(seeds: range, steps: tuple[int, ...] = (60, 400)) -> str:
    """Return the distance from the exact optimum after some steps on samples, with intervals over seeds."""
    heads = [f"after {count} steps" for count in steps]
    lines = ["| problem | method | " + " | ".join(heads) + " |", "|---" * (2 + len(steps)) + "|"]
    for problem_name, regularizer in PROBLEMS.items():
        optimum = problem(regularizer, 0.5).optimum().exp()
        for name, advantage in ADVANTAGES.items():
            objective = RLHF(regularizer, 0.5, advantage, Clipped(), ResponseSum())
            cells = []
            for count in steps:
                reached = [whole(train(objective, count, seed=seed)).exp() for seed in seeds]
                distances = [float(total_variation(each, optimum)) for each in reached]
                cells.append(with_interval(t_interval(distances), 3))
            lines.append(f"| {problem_name} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
