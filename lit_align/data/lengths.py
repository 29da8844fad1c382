"""A length report says how long the responses of a split are, and how well length alone predicts the chosen one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lit_align.data.store import PairStore

PERCENTILES = (5, 25, 50, 75, 95, 100)


@dataclass(frozen=True)
class Lengths:
    """Scored tokens of one side.

    Args:
        mean: mean.
        std: standard deviation (of the population).
        percentiles: percentile → tokens.
        truncated: responses that were cut.
    """

    mean: float
    std: float
    percentiles: Mapping[int, float]
    truncated: int


@dataclass(frozen=True)
class Interval:
    """A share and its 95 % interval by Wilson's score."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class LengthReport:
    """Exact numbers of one split, in tokens.

    Args:
        pairs: number of pairs.
        chosen: lengths of the chosen responses.
        rejected: lengths of the rejected responses.
        prompt_mean: mean length of the prompts.
        gap: mean of chosen minus rejected.
        chosen_longer: share of pairs whose chosen response is the longer one.
        longer_wins: accuracy of the rule "the longer response is better", ties counted one half.
        duplicates: pairs that stood before with the same prompt and responses.
        contradictions: pairs that stand elsewhere the other way round.
        seen_prompts: pairs whose prompt is also in the training split; None for that split itself.
        seen_pairs: pairs that are also in the training split; None for that split itself.
        dropped: rows that were left out, by reason.
        notes: how many pairs needed which remark.
    """

    pairs: int
    chosen: Lengths
    rejected: Lengths
    prompt_mean: float
    gap: float
    chosen_longer: float
    longer_wins: Interval
    duplicates: int
    contradictions: int
    seen_prompts: int | None = None
    seen_pairs: int | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)


def length_report(store: PairStore, train: PairStore | None = None) -> LengthReport:
    """The numbers of a split.

    Args:
        store: its pairs.
        train: the training pairs, if the split is for evaluation: what of it was seen there is counted.
    """
    tokens = store.lengths
    chosen, rejected = tokens.T
    forward = store.hashes(("prompt", "chosen", "rejected"))
    backward = set(store.hashes(("prompt", "rejected", "chosen")))
    return LengthReport(
        pairs=len(store),
        chosen=_lengths(chosen, store.truncated[:, 0]),
        rejected=_lengths(rejected, store.truncated[:, 1]),
        prompt_mean=float(store.part_lengths[:, 0].mean()),
        gap=float((chosen - rejected).mean()),
        chosen_longer=float((chosen > rejected).mean()),
        longer_wins=_wilson(float((chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()), len(store)),
        duplicates=len(forward) - len(set(forward)),
        contradictions=sum(digest in backward for digest in forward),
        seen_prompts=_seen(store, train, ("prompt",)),
        seen_pairs=_seen(store, train, ("prompt", "chosen", "rejected")),
    )


def table(reports: Mapping[str, LengthReport]) -> Table:
    """The reports side by side, one column for each split.

    Args:
        reports: split → report.
    """
    result = Table(title="Lengths in tokens")
    result.add_column("")
    for split in reports:
        result.add_column(split, justify="right")
    columns = [_cells(report) for report in reports.values()]
    for name in dict.fromkeys(name for column in columns for name in column):
        result.add_row(name, *(column.get(name, "") for column in columns))
    return result


def show(reports: Mapping[str, LengthReport]) -> None:
    """Print the table of the reports."""
    Console().print(table(reports))


def warnings(report: LengthReport, step: int = 0) -> list[str]:
    """What a person should look at before training, in sentences.

    Args:
        report: the numbers of a split.
        step: pairs that an optimizer step asks for; 0 for evaluation.
    """
    counts = {
        "rows were left out": sum(report.dropped.values()),
        "pairs stand there the other way round as well": report.contradictions,
        "pairs are copies of an earlier one": report.duplicates,
        "pairs are in the training data as well": report.seen_pairs,
        **{f"pairs: {note}": count for note, count in report.notes.items()},
    }
    few = [f"all {report.pairs} pairs are fewer than one optimizer step's {step}"] if report.pairs < step else []
    return [f"{count} {words}; {report.pairs} pairs are used" for words, count in counts.items() if count] + few


def _cells(report: LengthReport) -> dict[str, str]:
    cells = {"pairs": str(report.pairs), "prompt": f"{report.prompt_mean:.1f}"}
    for name, side in (("chosen", report.chosen), ("rejected", report.rejected)):
        cells[name] = f"{side.mean:.1f} ± {side.std:.1f}"
        cells[f"{name} {'/'.join(map(str, PERCENTILES))} %"] = " ".join(f"{v:.0f}" for v in side.percentiles.values())
        cells[f"{name} truncated"] = _share(side.truncated, report.pairs)
    cells["chosen − rejected"] = f"{report.gap:+.2f}"
    cells["chosen is longer"] = f"{report.chosen_longer:.1%}"
    wins = report.longer_wins
    cells["longer wins (95 %)"] = f"{wins.share:.1%} ({wins.low:.1%}–{wins.high:.1%})"
    counts = {
        "duplicates": report.duplicates,
        "contradictions": report.contradictions,
        "prompts seen in training": report.seen_prompts,
        "pairs seen in training": report.seen_pairs,
        **{f"left out: {reason}": count for reason, count in report.dropped.items()},
        **report.notes,
    }
    return cells | {name: _share(count, report.pairs) for name, count in counts.items() if count}


def _share(count: int, pairs: int) -> str:
    return f"{count} ({count / pairs:.1%})"


def _lengths(tokens: NDArray[np.int64], truncated: NDArray[np.bool_]) -> Lengths:
    percentiles = {p: float(value) for p, value in zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True)}
    return Lengths(float(tokens.mean()), float(tokens.std()), percentiles, int(truncated.sum()))


def _wilson(wins: float, count: int, z: float = 1.959963984540054) -> Interval:
    """The share of wins and Wilson's interval, which stays inside 0 and 1 also for few pairs.

    >>> interval = _wilson(8, 10)
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.4902, 0.9433)
    """
    share = wins / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Interval(share, middle - half, middle + half)


def _seen(store: PairStore, train: PairStore | None, parts: tuple[str, ...]) -> int | None:
    if train is None:
        return None
    known = set(train.hashes(parts))
    return sum(digest in known for digest in store.hashes(parts))
