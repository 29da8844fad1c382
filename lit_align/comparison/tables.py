"""The tables of a comparison, from which both the page and the Markdown are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_align.comparison.numbers import (
    SEED_KEYS,
    Plane,
    differing_keys,
    over_seeds,
    paired_gain,
    results,
    seed_groups,
    share_interval,
    validation_pairs,
)
from lit_align.comparison.runs import EvaluatedModel, Run
from lit_align.errors import without_secrets
from lit_align.evaluation.record import MetricEstimate

NOTHING = "–"
"""What stands in a cell that a run has no value for."""
WORDS = {
    "samples/policy/score": "score of its samples",
    "samples/policy/length/mean": "length of its samples (tokens)",
    "samples/policy/eos_rate": "samples that ended",
    "val/rewards/accuracies": "reward accuracy",
    "val/displacement/chosen/fell": "chosen responses that lost probability",
    "val/lengths/longer_wins": "accuracy of the rule “longer wins”",
    "val/lengths/margin_correlation": "correlation of margin and length gap",
    "val/rewards/margins": "reward margin",
    "val/loss": "validation loss",
    "val/log_probs/chosen/mean": "log-prob of a chosen token",
    "train/grad_norm": "gradient norm",
    "val/score": "score of its responses",
    "val/length": "length of its responses (tokens)",
    "val/entropy": "entropy (nats per response)",
    "val/matching/d2": "matching divergence D2",
    "val/reward": "reward of its responses (score minus penalty)",
    "val/eos_rate": "responses that ended",
    "val/kl": "divergence from the reference (nats)",
    "train/kl": "divergence from the reference (nats)",
    "eval/kl": "divergence from the reference (nats)",
    "train/score": "score of its rollouts",
    "val/matching/d1": "matching divergence D1",
    "val/matching/given/d2": "matching divergence D2 on the data’s pairs",
    "val/calibration/ece": "calibration error",
    "val/calibration/brier": "Brier score",
    "val/lengths/score_correlation": "correlation of score and length",
    "eval/win_rate": "win rate",
    "eval/win_rate/length_controlled": "length-controlled win rate",
    "eval/score": "score",
    "eval/length/tokens": "length (tokens)",
    "eval/length/words": "length (words)",
    **{
        f"eval/length/{unit}/p{p}": f"{p}th percentile of {unit}" for unit in ("tokens", "words") for p in (10, 50, 90)
    },
    "eval/ended": "responses that ended",
    "eval/distinct_1": "distinct words",
    "eval/distinct_2": "distinct pairs of words",
    "eval/distinct_1/corpus": "distinct words, of all responses together",
    "eval/distinct_2/corpus": "distinct pairs of words, of all responses together",
    "eval/entropy": "entropy of the next token (nats)",
    "eval/kl_per_token": "divergence per token (nats)",
    "eval/score/gain": "score minus the baseline’s",
    "eval/score/length_correlation": "rank correlation of score and length",
    "eval/win_rate/win": "won",
    "eval/win_rate/tie": "tied",
    "eval/win_rate/lose": "lost",
    "eval/judge_prefers_longer": "decisions for the longer response",
}
"""Metric → what it is called in a table."""


@dataclass(frozen=True)
class ComparisonTable:
    """A table, its first column the names of the rows.

    Args:
        title: what it shows; empty for none.
        columns: headings, the first for the names of the rows.
        rows: a text for each column.
        note: how it was computed.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def untitled(self) -> ComparisonTable:
        """The same without a title, where a heading says it."""
        return replace(self, title="")


def words_for(metric: str) -> str:
    """Return what a metric is called in a table or figure.

    >>> words_for("eval/judges/length/win_rate")
    'win rate by length'
    """
    if metric.startswith("eval/judges/"):
        judge, _, rest = metric.removeprefix("eval/judges/").partition("/")
        return f"{words_for(f'eval/{rest}').removeprefix('eval/')} by {judge}"
    return WORDS.get(metric, metric)


def number_text(value: float) -> str:
    """Return a number with four digits.

    >>> number_text(0.5), number_text(1234.5678), number_text(-0.00012345)
    ('0.5', '1235', '−0.0001234')
    """
    return f"{value:.4g}".replace("-", "−")


def interval_text(number: MetricEstimate | None) -> str:
    """Return a number and its 95 % interval; a dash for None.

    >>> interval_text(MetricEstimate(0.5, 0.4, 0.6, 100))
    '0.5 (0.4 to 0.6)'
    """
    if number is None:
        return NOTHING
    if number.low is None or number.high is None:
        return number_text(number.value)
    return f"{number_text(number.value)} ({number_text(number.low)} to {number_text(number.high)})"


def setting_text(value: Any) -> str:
    """Return a setting as YAML would hold it; a dash for one that the run does not have."""
    if value is None:
        return NOTHING
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return without_secrets(text)


def overview(runs: Sequence[Run]) -> ComparisonTable:
    """Return a table of the runs: what they train, how far they have come, and what is missing."""
    rows = tuple(
        (
            run.name,
            setting_text(run.settings.get("task")),
            setting_text(run.settings.get("model.policy")),
            setting_text(run.settings.get("model.objective")),
            str(run.step),
            "; ".join(run.notes),
        )
        for run in runs
    )
    return ComparisonTable("Runs", ("run", "task", "policy", "objective", "steps", "notes"), rows)


def results_table(runs: Sequence[Run]) -> ComparisonTable:
    """Return a table of how the runs ended, a column for each."""
    ends = [results(run) for run in runs]
    names = dict.fromkeys(name for end in ends for name in end)
    rows = [(words_for(name), *(interval_text(end.get(name)) for end in ends)) for name in names]
    gains = [None, *(paired_gain(run, runs[0]) for run in runs[1:])]
    if any(gains):
        place = 1 if "samples/policy/score" in names else 0
        rows.insert(place, (f"… minus that of {runs[0].name}, by prompt", *map(_gain_text, gains)))
    pairs = sorted({count for count in map(validation_pairs, runs) if count})
    over = f" over {' or '.join(map(str, pairs))} validation pairs" if pairs else ""
    note = (
        "Last values, and 95 % intervals in parentheses: Student’s t over prompts for samples, Wilson’s for shares, "
        f"Fisher’s for correlations{over}. They describe chance in prompts and pairs, not in seeds."
    )
    return ComparisonTable("Results", ("", *(run.name for run in runs)), tuple(rows), note)


def _gain_text(gain: MetricEstimate | None) -> str:
    return NOTHING if gain is None else f"{interval_text(gain)}, n = {gain.n}"


def seeds_table(runs: Sequence[Run]) -> ComparisonTable | None:
    """Return a table of means over seeds; None where no two runs differ in nothing but the seed."""
    groups = [group for group in seed_groups(runs) if len(group) > 1]
    if not groups:
        return None
    keys = [key for key in differing_keys(runs) if key not in SEED_KEYS]
    heads = [
        ", ".join(f"{key.rpartition('.')[2]} {setting_text(group[0].settings.get(key))}" for key in keys)
        for group in groups
    ]
    names = [f"{head or 'all runs'} ({len(group)} seeds)" for head, group in zip(heads, groups, strict=True)]
    ends = [over_seeds(group) for group in groups]
    metrics = dict.fromkeys(name for end in ends for name in end)
    rows = tuple((words_for(metric), *(interval_text(end.get(metric)) for end in ends)) for metric in metrics)
    return ComparisonTable(
        "Over seeds", ("", *names), rows, "Mean over seeds, and Student’s 95 % interval of that mean."
    )


def differences(runs: Sequence[Run]) -> ComparisonTable:
    """Return a table of the settings in which the runs differ."""
    rows = tuple((key, *(setting_text(run.settings.get(key)) for run in runs)) for key in differing_keys(runs))
    return ComparisonTable("Settings that differ", ("setting", *(run.name for run in runs)), rows)


def shared_settings(runs: Sequence[Run]) -> ComparisonTable:
    """Return a table of the settings that all runs share, without those that are not set."""
    differing = set(differing_keys(runs))
    shared = [(key, value) for key, value in runs[0].settings.items() if key not in differing and value is not None]
    return ComparisonTable(
        "Settings that are the same", ("setting", "all"), tuple((key, setting_text(value)) for key, value in shared)
    )


def front_table(plane: Plane) -> ComparisonTable:
    """Return a table of the points that no other point beats in both length and score."""
    note = "No other point is at most as long and scores at least as high."
    front = plane_table(replace(plane, points=tuple(plane.front)))
    return replace(front, title=f"Pareto front: {words_for(plane.score)}", note=note)


def plane_table(plane: Plane) -> ComparisonTable:
    """Return a table of all points of a plane; evaluated models have no steps."""
    has_steps = any(point.step is not None for point in plane.points)
    rows = tuple(
        (
            point.name,
            *((str(point.step),) if has_steps else ()),
            number_text(point.length),
            number_text(point.score),
        )
        for point in plane.points
    )
    heads = ("run", "step") if has_steps else ("model",)
    return ComparisonTable("All points", (*heads, words_for(plane.length), words_for(plane.score)), rows)


def evaluation_table(models: Sequence[EvaluatedModel]) -> ComparisonTable:
    """Return a table of the numbers of evaluations, a column for each model."""
    metrics = dict.fromkeys(name for model in models for name in model.record.metrics)
    heads = tuple(f"{model.name} (baseline)" if model.is_baseline else model.name for model in models)
    rows = tuple(
        (
            words_for(f"eval/{metric}").removeprefix("eval/"),
            *(interval_text(model.record.metrics.get(metric)) for model in models),
        )
        for metric in metrics
    )
    settings = [model.record.settings for model in models]
    judges = dict.fromkeys(str(each["judge"]) for each in settings if each.get("judge") is not None)
    judges |= {f"{name}: {judge}": None for each in settings for name, judge in (each.get("judges") or {}).items()}
    judged = f"Judged by {'; '.join(map(without_secrets, judges))}. " if judges else ""
    return ComparisonTable("Evaluation", ("", *heads), rows, f"{judged}95 % intervals in parentheses.")


def margins_table(runs: Sequence[Run]) -> ComparisonTable | None:
    """Return a table of the reward accuracy in each bucket of length; None if no run has margins."""
    known = [run for run in runs if run.margins]
    if not known:
        return None
    buckets = dict.fromkeys(name for run in known for name in run.margins["buckets"])
    rows = []
    for bucket in buckets:
        cells = []
        for run in known:
            counts = run.margins["buckets"].get(bucket, {"pairs": 0})
            cells.append(_bucket_text(counts))
        rows.append((bucket.replace("_", " "), *cells))
    note = "Share of the pairs whose chosen response has the higher reward, Wilson’s 95 % interval, and the pairs."
    return ComparisonTable(
        "Accuracy by length of the chosen response", ("chosen is", *(run.name for run in known)), tuple(rows), note
    )


def _bucket_text(bucket: Mapping[str, Any]) -> str:
    pairs = int(bucket["pairs"])
    if not pairs:
        return NOTHING
    return f"{interval_text(share_interval(bucket['won'] / pairs, pairs))}, n = {pairs}"


DATA_ROWS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "pairs": lambda split: str(split["lengths"]["pairs"]),
    "chosen, mean tokens": lambda split: number_text(split["lengths"]["chosen"]["mean"]),
    "rejected, mean tokens": lambda split: number_text(split["lengths"]["rejected"]["mean"]),
    "longer response is the chosen one": lambda split: interval_text(
        MetricEstimate(*(split["lengths"]["longer_wins"][key] for key in ("share", "low", "high")))
    ),
    "responses that were cut": lambda split: str(
        split["lengths"]["chosen_truncated"] + split["lengths"]["rejected_truncated"]
    ),
    "duplicates": lambda split: str(split["duplicates"]),
    "contradictions": lambda split: str(split["contradictions"]),
    "prompts seen in training": lambda split: NOTHING if split["seen_prompts"] is None else str(split["seen_prompts"]),
    "rows left out": lambda split: str(sum(split["dropped"].values())),
}
"""Row of the table of the data → its text for a split of ``data.json``."""


def data_table(runs: Sequence[Run]) -> ComparisonTable | None:
    """Return a table of the data, a column for each split, which runs on the same data share; None without reports."""
    columns: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for run in runs:
        for split, report in run.data.items():
            columns.setdefault(f"{split} {report!r}", ([split], report))[0].append(run.name)
    if not columns:
        return None
    heads = [f"{names[0]}: {_all_or(names[1:], runs)}" for names, _ in columns.values()]
    rows = tuple((label, *(text(report) for _, report in columns.values())) for label, text in DATA_ROWS.items())
    return ComparisonTable("Data", ("", *heads), rows, "Lengths in scored tokens; 95 % intervals in parentheses.")


def _all_or(names: Sequence[str], runs: Sequence[Run]) -> str:
    return "all runs" if len(names) == len(runs) and len(runs) > 1 else ", ".join(names)


def environment_table(runs: Sequence[Run]) -> ComparisonTable | None:
    """Return a table of versions and devices; None if no run has written them."""
    known = [run for run in runs if run.environment]
    keys = dict.fromkeys(key for run in known for key in run.environment)
    rows = tuple((key, *(setting_text(run.environment.get(key)) for run in known)) for key in keys)
    return ComparisonTable("Environment", ("", *(run.name for run in known)), rows) if known else None
