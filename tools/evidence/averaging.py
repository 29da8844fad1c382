"""The page on averaging: how length and score move together, by averaging, β and the raters' bonus for length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.comparison.numbers import t_interval
from lit_align.evaluation.win_rates import length_controlled
from lit_align.testbed.preferences import rated_score
from lit_align.testbed.world import SHIPPED
from tools.evidence.closed_form import Optimum, optimum
from tools.evidence.intervals import Comparison, compare, with_interval
from tools.evidence.measure import draft_length, kept_pairs
from tools.evidence.sweeps import RunNumbers

CONTRASTS = {"Logistic": "DPO", "Square": "IPO"}
POWERS = {"sum": 0.0, "√n": 0.5, "mean": 1.0}
LENGTH = 30.0
"""Tokens of a response, by which β of sums is made one of means."""
DIVERGENCES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""Nats at which settings are compared."""
WORLDS = {"bonus=0": 0.0, "bonus=0.16": 0.16}
"""Folder of a world → the bonus for length of its raters."""


@dataclass(frozen=True)
class Aligned:
    """A run of the page.

    Args:
        numbers: of the run.
    """

    numbers: RunNumbers

    @property
    def contrast(self) -> str:
        """DPO or IPO."""
        return CONTRASTS[self.numbers.values["model.objective.contrast"]]

    @property
    def averaging(self) -> str:
        """One of ``POWERS``."""
        return {"Sum": "sum", "LengthPower": "√n", "Mean": "mean"}[self.numbers.values["model.objective.averaging"]]

    @property
    def beta(self) -> float:
        """β as configured."""
        return float(self.numbers.values["model.objective.contrast.beta"])

    @property
    def rank(self) -> float:
        """β at the scale of sums, rounded so that matched ones are equal."""
        return float(f"{self.beta / LENGTH ** POWERS[self.averaging]:.1g}")

    @property
    def bonus(self) -> float:
        """Raters' bonus for length in the training pairs."""
        train = Path(str(self.numbers.values["data.train"])).parent.name
        return WORLDS.get(train, SHIPPED.length_bonus)

    @property
    def path(self) -> list[tuple[int, float, float]]:
        """Step, length and score along training."""
        steps = {int(step): values for step, values in self.numbers.steps.items()}
        return [(step, steps[step]["length"], steps[step]["score"]) for step in sorted(steps)]

    @property
    def length(self) -> float:
        """Mean tokens of the final policy's responses."""
        return self.path[-1][1]

    @property
    def score(self) -> float:
        """Mean true score of the final policy's responses."""
        return self.path[-1][2]

    @property
    def kl(self) -> float:
        """Divergence of the final policy from its start, in nats per response."""
        return float(self.numbers.final["kl"])

    @property
    def won(self) -> float:
        """Win rate against the start."""
        return mean(self.numbers.final["won"])

    @cached_property
    def tilt(self) -> dict[str, float]:
        """Share of the variance of pairs' log-ratios that each closed form explains; see `explained`."""
        return explained(np.array(self.numbers.final["log_ratio"]), self.bonus)


def explained(log_ratios: NDArray[np.float64], bonus: float) -> dict[str, float]:
    r"""Return how well $\log\pi/\pi_{ref} = n^p (r/\beta + c(x))$ explains differences within pairs, for each p.

    Of two responses to a prompt the difference is $a\,\Delta(n^p r) + b\,\Delta n^p$, where b is 0 for sums. The
    coefficients are fitted, and R² is corrected for their number.

    Args:
        log_ratios: of chosen and rejected, [pair, side].
        bonus: of the raters, which is part of r.
    """
    settings = SHIPPED.__class__(length_bonus=bonus)
    rows, sides = kept_pairs(), ("chosen", "rejected")
    rated = np.array([[rated_score(row["prompt"], row[side], settings) for side in sides] for row in rows])
    lengths = np.array([[draft_length(row[side]) for side in sides] for row in rows], dtype=float)
    difference = log_ratios @ (1, -1)
    shares = {}
    for name, power in POWERS.items():
        scaled = lengths**power
        columns = [(scaled * rated) @ (1, -1)] + ([scaled @ (1, -1)] if power else [])
        design = np.stack(columns, axis=1)
        fitted, *_ = np.linalg.lstsq(design, difference, rcond=None)
        rest = difference - design @ fitted
        freedom = len(difference) / (len(difference) - design.shape[1])
        shares[name] = 1 - freedom * float(rest @ rest) / float(difference @ difference)
    return shares


def closed_forms(bonus: float) -> dict[str, list[Optimum]]:
    """Return the optima of each averaging along β."""
    ladder = [float(beta) for beta in np.geomspace(0.1, 30, 24)]
    world = SHIPPED.__class__(length_bonus=bonus)
    return {name: [optimum(beta * LENGTH**power, power, world) for beta in ladder] for name, power in POWERS.items()}


def controlled(runs: Sequence[Aligned]) -> dict[tuple[str, int], float]:
    """Return the length-controlled win rate of each run against the start, by setting and seed."""
    rates: dict[tuple[str, int], float] = {}
    for seed in sorted({run.numbers.seed for run in runs}):
        own = {run.numbers.setting: run.numbers for run in runs if run.numbers.seed == seed}
        won = {name: np.array(each.final["won"])[:, None] for name, each in own.items()}
        longer = {name: np.array(each.final["longer"], dtype=float)[:, None] for name, each in own.items()}
        rates |= {(name, seed): each.value for name, each in length_controlled(won, longer, 2)[0].items()}
    return rates


def tables(runs: Sequence[Aligned]) -> dict[str, str]:
    """Return the tables of the page by the names of their marks."""
    return {
        "settings": settings_table(runs),
        "pooled": pooled(runs).table("β of sums"),
        "equal_beta": equal_beta(runs).table("β of sums"),
        "equal_kl": equal_kl_table(runs),
        "bonus": bonus_table(runs),
    }


def settings_table(runs: Sequence[Aligned]) -> str:
    """Return the table of all settings with the shipped bonus: means over seeds with 95 % intervals."""
    rates = controlled(runs)
    lines = [
        "| objective | averaging | β | seeds | length | true score | KL | win rate | length-controlled |",
        "|---" * 9 + "|",
    ]
    for own in groups(run for run in runs if run.bonus == SHIPPED.length_bonus):
        of = own[0]
        columns = [[run.length for run in own], [run.score for run in own], [run.kl for run in own]]
        columns += [
            [100 * run.won for run in own],
            [100 * rates[run.numbers.setting, run.numbers.seed] for run in own],
        ]
        cells = [
            with_interval(t_interval(values), digits) for values, digits in zip(columns, (1, 2, 2, 0, 0), strict=True)
        ]
        lines.append(f"| {of.contrast} | {of.averaging} | {of.beta:g} | {len(own)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bonus_table(runs: Sequence[Aligned]) -> str:
    """Return length and score by the raters' bonus, for the settings that were trained with each."""
    with_others = {
        run.numbers.values["model.objective.averaging"] for run in runs if run.bonus != SHIPPED.length_bonus
    }
    ranks = {(run.contrast, run.rank) for run in runs if run.bonus != SHIPPED.length_bonus}
    lines = ["| objective | averaging | bonus | seeds | length | true score | KL |", "|---" * 7 + "|"]
    chosen = [
        run
        for run in runs
        if run.numbers.values["model.objective.averaging"] in with_others and (run.contrast, run.rank) in ranks
    ]
    for own in sorted(groups(chosen), key=lambda own: (own[0].averaging, own[0].bonus)):
        cells = [with_interval(t_interval([getattr(run, name) for run in own])) for name in ("length", "score", "kl")]
        lines.append(
            f"| {own[0].contrast} | {own[0].averaging} | {own[0].bonus:g} | {len(own)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def groups(runs: Iterable[Aligned]) -> list[list[Aligned]]:
    """Return the runs of each setting, its seeds together, by objective, averaging, bonus and β."""
    by_setting: dict[str, list[Aligned]] = {}
    for run in runs:
        by_setting.setdefault(run.numbers.setting, []).append(run)

    def order(own: list[Aligned]) -> tuple[Any, ...]:
        return own[0].contrast, list(POWERS).index(own[0].averaging), own[0].bonus, own[0].beta

    return sorted(by_setting.values(), key=order)


def equal_beta(runs: Sequence[Aligned]) -> Differences:
    """Return the differences to sums at the same β at the scale of sums, paired by seed, and by prompt."""
    place = {(run.contrast, run.averaging, run.rank, run.numbers.seed): run for run in main_runs(runs)}
    differences = Differences()
    for (contrast, averaging, rank, seed), run in sorted(place.items()):
        base = place.get((contrast, "sum", rank, seed))
        if averaging != "sum" and base is not None:
            key = f"{contrast} | {averaging} | {rank:g}"
            for axis in ("score", "length"):
                own, other = (np.array(each.numbers.final[axis], dtype=float) for each in (run, base))
                differences.add(axis, key, float((own - other).mean()), own - other)
    return differences


def pooled(runs: Sequence[Aligned]) -> Differences:
    """Return the same as means over all β that a seed has: one comparison for each objective and averaging."""
    single, joined = equal_beta(runs), Differences()
    families: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for axis, key in single.seeds:
        families.setdefault((axis, key.rpartition(" | ")[0]), []).append((axis, key))
    for (axis, family), keys in families.items():
        for seed in range(min(len(single.seeds[key]) for key in keys)):
            by_prompt = np.mean([single.prompts[key][seed] for key in keys], axis=0)
            joined.add(axis, f"{family} | all {len(keys)}", float(by_prompt.mean()), by_prompt)
    return joined


def equal_kl_table(runs: Sequence[Aligned]) -> str:
    """Return the differences to sums at equal KL, interpolated along β within each seed where its curves reach it."""
    main, differences = main_runs(runs), Differences()
    for contrast, name, kl in product(CONTRASTS.values(), ("√n", "mean"), DIVERGENCES):
        for seed in sorted({run.numbers.seed for run in main}):
            own = [run for run in main if (run.contrast, run.numbers.seed) == (contrast, seed)]
            other, base = (at_kl([run for run in own if run.averaging == each], kl) for each in (name, "sum"))
            if base and other:
                for axis, place in (("score", 1), ("length", 0)):
                    differences.add(axis, f"{contrast} | {name} | {kl:.2g}", other[place] - base[place])
    return differences.table("KL")


def at_kl(runs: Sequence[Aligned], kl: float) -> tuple[float, float] | None:
    """Return length and score at a divergence, interpolated between runs; None outside of theirs."""
    curve = sorted((run.kl, run.length, run.score) for run in runs)
    if not curve or not curve[0][0] <= kl <= curve[-1][0]:
        return None
    columns = np.array(curve).T
    return float(np.interp(kl, columns[0], columns[1])), float(np.interp(kl, columns[0], columns[2]))


def main_runs(runs: Iterable[Aligned]) -> list[Aligned]:
    """Return the runs on the shipped pairs."""
    return [run for run in runs if run.bonus == SHIPPED.length_bonus]


class Differences:
    """Paired differences to sums, of scores and of lengths, over seeds and over prompts."""

    def __init__(self) -> None:
        self.seeds: dict[tuple[str, str], list[float]] = {}
        self.prompts: dict[tuple[str, str], list[NDArray[np.float64]]] = {}

    def add(self, axis: str, key: str, of_seed: float, of_prompts: NDArray[np.float64] | None = None) -> None:
        """Add the difference of a seed, and those of its prompts."""
        self.seeds.setdefault((axis, key), []).append(of_seed)
        if of_prompts is not None:
            self.prompts.setdefault((axis, key), []).append(of_prompts)

    def tested(self) -> tuple[dict[tuple[str, str], Comparison], dict[tuple[str, str], Comparison]]:
        """Return the comparisons over seeds and over prompts, each corrected for all of its kind."""
        by_prompt = {key: list(np.mean(values, axis=0)) for key, values in self.prompts.items()}
        return compare(self.seeds), compare(by_prompt)

    def table(self, at: str) -> str:
        """Return a table; bold ones hold after Holm's correction for all of their kind."""
        by_seed, by_prompt = self.tested()
        kinds = [
            (axis, over, tested)
            for axis in ("score", "length")
            for over, tested in (("seeds", by_seed), ("prompts", by_prompt))
        ]
        kinds = [kind for kind in kinds if kind[2]]
        heads = ["objective", "averaging", at, "seeds"]
        for axis, over, _ in kinds:
            heads += [f"{axis} − sum's, over {over}", "p (Holm)"]
        lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for key in dict.fromkeys(key for _, key in self.seeds):
            cells = [key, str(len(self.seeds["score", key]))]
            for axis, _, tested in kinds:
                cells += [str(tested[axis, key]), tested[axis, key].corrected]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)
