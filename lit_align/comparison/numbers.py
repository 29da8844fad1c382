"""What is computed about compared runs: intervals, the length-score plane and its Pareto front, margins by length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy.special import stdtrit

from lit_align.comparison.runs import Run
from lit_align.evaluation.record import MetricEstimate
from lit_align.statistics import Z_95, wilson

PLANES = (
    ("eval/win_rate/length_controlled", "eval/length/tokens"),
    ("eval/win_rate", "eval/length/tokens"),
    ("eval/score", "eval/length/tokens"),
    ("samples/policy/score", "samples/policy/length/mean"),
    ("val/score", "val/length"),
    ("val/rewards/accuracies", "samples/policy/length/mean"),
)
"""Score and length of a plane; the first that the most runs have is shown."""
DIVERGENCE_PLANES = (("eval/score", "eval/kl"), ("val/score", "val/kl"), ("train/score", "train/kl"))
"""Score and divergence from the reference, likewise."""
SAMPLE_SCORE, SAMPLE_LENGTH, SAMPLE_ENDED = (
    "samples/policy/score",
    "samples/policy/length/mean",
    "samples/policy/eos_rate",
)
SHARES_OF_PAIRS = ("rewards/accuracies", "displacement/chosen/fell", "lengths/longer_wins")
"""Metrics of a validation that are a share of its pairs."""
CORRELATIONS = ("lengths/margin_correlation",)
EVALUATED = ("eval/win_rate", "eval/win_rate/length_controlled", "eval/score", "eval/length/tokens", "eval/kl")
"""What the evaluation during a run reports, its interval beside it as ``.../low`` and ``.../high``."""
OTHER_RESULTS = (
    *("rewards/margins", "loss", "score", "reward", "length", "eos_rate", "entropy", "kl"),
    *("matching/d1", "matching/d2", "matching/given/d2"),
    *("calibration/ece", "calibration/brier", "lengths/score_correlation"),
)


@dataclass(frozen=True)
class PlanePoint:
    """A policy at one step, or an evaluated model.

    Args:
        name: of the run or the model.
        step: of the run; None for an evaluated model.
        length: mean length of its responses.
        score: what they are worth.
        in_front: whether no other point is both at most as long and at least as good, and better in one of the two.
    """

    name: str
    step: int | None
    length: float
    score: float
    in_front: bool = False


@dataclass(frozen=True)
class Plane:
    """Length, or divergence, and score of several runs over training, or of evaluated models.

    Args:
        score: name of what is on the vertical axis.
        length: name of what is on the horizontal axis.
        points: in the order of the runs, and of the steps of each.
        without: names of the runs that have no such points.
    """

    score: str
    length: str
    points: tuple[PlanePoint, ...]
    without: tuple[str, ...] = ()

    @property
    def front(self) -> list[PlanePoint]:
        """The points of the Pareto front, the shortest first."""
        return sorted(
            (point for point in self.points if point.in_front), key=lambda point: (point.length, point.score)
        )


def with_front(points: Sequence[PlanePoint]) -> tuple[PlanePoint, ...]:
    """Mark the points of the Pareto front: shorter is better, and so is a higher score.

    >>> points = [PlanePoint("a", 0, 10, 1.0), PlanePoint("a", 5, 30, 2.0), PlanePoint("b", 5, 20, 2.0)]
    >>> [point.in_front for point in with_front(points)]
    [True, False, True]
    """
    best, front = -math.inf, set()
    for point in sorted(points, key=lambda point: (point.length, -point.score)):
        if point.score > best:
            best = point.score
            front.add((point.length, point.score))
    return tuple(
        PlanePoint(point.name, point.step, point.length, point.score, (point.length, point.score) in front)
        for point in points
    )


def training_plane(runs: Sequence[Run], planes: Sequence[tuple[str, str]] = PLANES) -> Plane | None:
    """Return the plane of the score and length that the most runs have; None if no run has both.

    Args:
        runs: that are compared. A point is a step at which both are reported.
        planes: score and length, or divergence, to choose from.
    """
    candidates = []
    for score, length in planes:
        steps = {run.name: _common_steps(run, score, length) for run in runs}
        points = [
            PlanePoint(run.name, step, run.curves[length][step], run.curves[score][step])
            for run in runs
            for step in steps[run.name]
        ]
        without = tuple(name for name, known in steps.items() if not known)
        candidates.append(Plane(score, length, with_front(points), without))
    best = min(candidates, key=lambda plane: len(plane.without))
    return best if best.points else None


def _common_steps(run: Run, score: str, length: str) -> list[int]:
    return [step for step in run.curves.get(score, {}) if step in run.curves.get(length, {})]


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────────────


def t_interval(values: Sequence[float]) -> MetricEstimate:
    r"""Return the mean and its 95 % interval by Student's t: $\bar x \pm t_{n-1}\, s / \sqrt n$.

    Args:
        values: at least one; one value alone has no interval.

    >>> interval = t_interval([1.0, 2.0, 3.0])
    >>> interval.value, round(interval.low, 3), round(interval.high, 3)
    (2.0, -0.484, 4.484)
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return MetricEstimate(mean, n=count)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return MetricEstimate(mean, mean - half, mean + half, count)


def correlation_interval(r: float, count: int) -> MetricEstimate:
    r"""Return a correlation and its 95 % interval by Fisher's z: $\tanh(\operatorname{artanh} r \pm 1.96/\sqrt{n-3})$.

    >>> interval = correlation_interval(0.5, 103)
    >>> round(interval.low, 3), round(interval.high, 3)
    (0.339, 0.632)
    """
    if count < 4 or abs(r) >= 1:
        return MetricEstimate(r, n=count)
    z, half = math.atanh(r), Z_95 / math.sqrt(count - 3)
    return MetricEstimate(r, math.tanh(z - half), math.tanh(z + half), count)


def share_interval(share: float, count: int) -> MetricEstimate:
    """Return a share and Wilson's 95 % interval; none without cases."""
    if not count:
        return MetricEstimate(share)
    interval = wilson(share * count, count)
    return MetricEstimate(share, interval.low, interval.high, count)


def validation_pairs(run: Run) -> int:
    """Return how many pairs with two responses a validation covers; 0 if that is not known."""
    if run.settings.get("trainer.limit_val_batches") is not None:
        return 0
    count = run.data.get("validation", {}).get("lengths", {}).get("gap", {}).get("count", 0)
    return int(count)


def last_samples(run: Run, step: int | None = None) -> list[Mapping[str, Any]]:
    """Return the rows of ``samples.jsonl`` at a step, by default the last one."""
    if not run.samples:
        return []
    last = max(row["step"] for row in run.samples) if step is None else step
    return [row for row in run.samples if row["step"] == last]


def sample_values(run: Run, name: str) -> dict[str, float]:
    """Return prompt → number of the last samples; empty if the run has not that number of all of them."""
    rows = last_samples(run)
    known = {str(row["prompt"]): float(row[name]) for row in rows if _is_number(row.get(name))}
    return known if len(known) == len(rows) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def results(run: Run) -> dict[str, MetricEstimate]:
    """Return the last value of the metrics that say how a run ended, with 95 % intervals where they can be computed.

    Means over samples have Student's interval over the prompts, shares that of Wilson, correlations that of Fisher;
    an evaluation during the run has reported its own.
    """
    numbers: dict[str, MetricEstimate] = {}
    for name, column in ((SAMPLE_SCORE, "policy_score"), (SAMPLE_LENGTH, "policy_tokens")):
        values = list(sample_values(run, column).values())
        numbers |= {name: t_interval(values)} if values else _bare(run, name)
    ended = run.last(SAMPLE_ENDED)
    if ended is not None:
        numbers[SAMPLE_ENDED] = share_interval(ended, len(last_samples(run)))
    pairs = validation_pairs(run)
    for name in SHARES_OF_PAIRS:
        numbers |= {key: share_interval(number.value, pairs) for key, number in _bare(run, f"val/{name}").items()}
    for name in CORRELATIONS:
        numbers |= {
            key: correlation_interval(number.value, pairs) for key, number in _bare(run, f"val/{name}").items()
        }
    for name in OTHER_RESULTS:
        numbers |= _bare(run, f"val/{name}")
    for name in EVALUATED:
        low, high = run.last(f"{name}/low"), run.last(f"{name}/high")
        numbers |= {key: replace(number, low=low, high=high) for key, number in _bare(run, name).items()}
    return numbers


def _bare(run: Run, name: str) -> dict[str, MetricEstimate]:
    value = run.last(name)
    return {} if value is None else {name: MetricEstimate(value)}


def paired_gain(run: Run, first: Run) -> MetricEstimate | None:
    """Return by how much a run's samples score higher than those of the first, paired by prompt.

    Returns:
        The mean difference and its 95 % interval; None where they have no scored prompts in common.
    """
    own, base = sample_values(run, "policy_score"), sample_values(first, "policy_score")
    shared = [own[prompt] - base[prompt] for prompt in own if prompt in base]
    return t_interval(shared) if shared else None


def calibration_points(run: Run) -> list[tuple[float, float, int]]:
    """Return what the rewards of a run take for probabilities, and how often they are right, for each bin of them.

    Returns:
        Mean probability of the bin, share of its pairs in which the preferred side is ahead, and their number.
    """
    bins = run.margins.get("reliability", [])
    return [(chance / pairs, right / pairs, round(pairs)) for pairs, chance, right in bins if pairs]


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────

SEED_KEYS = ("seed_everything", "data.seed")
"""Settings in which the runs of one group may differ."""
IGNORED_KEYS = ("run", "ckpt_path", "extend", "weights_only")
"""Settings that say nothing about a run."""


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the settings in which runs differ, in the order of their configurations."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in IGNORED_KEYS)
    return [key for key in keys if len({repr(run.settings.get(key)) for run in runs}) > 1]


def seed_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Return runs that differ in nothing but the seed, together; each has settings of its own.

    Args:
        runs: that are compared; those whose settings are not known stand alone.
    """
    keys = [key for key in differing_keys(runs) if key not in SEED_KEYS]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = repr([run.settings.get(key) for key in keys]) if run.settings else run.name
        groups.setdefault(settings, []).append(run)
    return list(groups.values())


def over_seeds(group: Sequence[Run]) -> dict[str, MetricEstimate]:
    """Return the mean of each result over runs that differ in the seed, with Student's 95 % interval."""
    ends = [results(run) for run in group]
    names = dict.fromkeys(name for end in ends for name in end)
    return {name: t_interval([end[name].value for end in ends if name in end]) for name in names}
