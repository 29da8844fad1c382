"""The table of length reports, and warnings about what should be looked at before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_align.data.report.lengths import SUMMED_BETA, LengthReport, PairLengths, short_name
from lit_align.statistics import Distribution

SIDE_PERCENTILES, GAP_PERCENTILES = (5, 50, 95, 100), (0, 5, 50, 95, 100)

Cells = dict[tuple[str, str], str]
"""(section, label) → text of the cell; cells with the same key share a row."""


def table(reports: Mapping[str, LengthReport]) -> Table:
    """Build a table with one column per split, followed by a short section for each source of a mixture."""
    result = Table(title="Lengths in tokens (mean ± deviation, percentiles)", title_justify="left")
    result.add_column("", overflow="fold")
    for split in reports:
        result.add_column(split, justify="right", no_wrap=True)
    _add(result, [_lengths(report.lengths) for report in reports.values()])
    result.add_section()
    _add(result, [_counts(report) for report in reports.values()])
    for name in dict.fromkeys(name for report in reports.values() for name in report.sources):
        columns = [report.sources.get(name) for report in reports.values()]
        result.add_section()
        result.add_row(f"[bold]{escape(short_name(name))}[/]")
        _add(result, [_source_cells(lengths) if lengths else {} for lengths in columns])
    return result


def show(reports: Mapping[str, LengthReport]) -> None:
    """Print the table of the reports."""
    Console().print(table(reports))


def warnings(report: LengthReport, step_size: int = 0) -> list[str]:
    """Return sentences about what should be looked at before training."""
    counts = {
        ("row was left out", "rows were left out"): sum(report.dropped.values()),
        ("pair also occurs with chosen and rejected swapped", "pairs also occur with chosen and rejected swapped"): (
            report.contradictions
        ),
        ("pair is a copy of an earlier one", "pairs are copies of an earlier one"): report.duplicates,
        ("pair is in the training data as well", "pairs are in the training data as well"): report.seen_pairs,
        **{(f"pair: {note}", f"pairs: {note}"): count for note, count in report.notes.items()},
    }
    used = f"{report.pairs} pairs are used" if report.pairs != 1 else "1 pair is used"
    sentences = [f"{count} {words[count > 1]}; {used}" for words, count in counts.items() if count]
    if report.pairs < step_size:
        sentences.append(f"{used}, and an optimizer step takes {step_size}")
    return sentences


def _add(result: Table, columns: Sequence[Cells]) -> None:
    """Add the rows of all columns in order; a column without a row's key is empty there."""
    for key in dict.fromkeys(key for column in columns for key in column):
        result.add_row(escape(key[1]), *(escape(column.get(key, "")) for column in columns))


def _lengths(lengths: PairLengths) -> Cells:
    cells = {("", "pairs"): str(lengths.pairs), ("prompt", "prompt"): _spread(lengths.prompt)}
    for name, side, cut in (
        ("chosen", lengths.chosen, lengths.chosen_truncated),
        ("rejected", lengths.rejected, lengths.rejected_truncated),
    ):
        if side.count:
            cells |= {
                (name, name): _spread(side),
                (name, _heading(SIDE_PERCENTILES)): _percentiles(side, SIDE_PERCENTILES),
                (name, "  truncated"): _share(cut, side.count),
            }
    if lengths.gap.count:
        cells |= {
            ("gap", "chosen − rejected"): f"{lengths.gap.mean:+.1f} ± {lengths.gap.std:.1f}",
            ("gap", _heading(GAP_PERCENTILES)): _percentiles(lengths.gap, GAP_PERCENTILES),
            ("gap", "chosen is longer"): f"{lengths.chosen_longer:.1%}",
            ("gap", "longer wins (95 %)"): _wins(lengths),
        }
    if lengths.score_correlation is not None:
        cells["gap", "length gap ~ score gap, r"] = f"{lengths.score_correlation:+.2f}"
    if lengths.matched_beta:
        cells["", f"β of means for {SUMMED_BETA} of sums"] = f"{lengths.matched_beta:.2f}"
    return cells


def _source_cells(lengths: PairLengths) -> Cells:
    shown = ("pairs", "chosen", "rejected", "chosen − rejected", "longer wins (95 %)")
    return {key: cell for key, cell in _lengths(lengths).items() if key[1] in shown}


def _counts(report: LengthReport) -> Cells:
    """Return the counts that are not 0: duplicates, overlap with the training data, notes, and rows left out."""
    pairs = {
        "duplicates": report.duplicates,
        "contradictions": report.contradictions,
        "prompts seen in training": report.seen_prompts,
        "pairs seen in training": report.seen_pairs,
        **report.notes,
    }
    rows = {f"left out: {reason}": count for reason, count in report.dropped.items()}
    shares = {("counts", label): _share(count, report.pairs) for label, count in pairs.items() if count}
    return shares | {("counts", label): _share(count, report.rows) for label, count in rows.items() if count}


def _spread(lengths: Distribution) -> str:
    return f"{lengths.mean:.1f} ± {lengths.std:.1f}"


def _heading(percentiles: Sequence[int]) -> str:
    return f"  {'/'.join(map(str, percentiles))} %"


def _percentiles(lengths: Distribution, percentiles: Sequence[int]) -> str:
    return " ".join(f"{lengths.percentiles[p]:.0f}" for p in percentiles)


def _wins(lengths: PairLengths) -> str:
    wins = lengths.longer_wins
    return f"{wins.share:.1%} ({wins.low:.1%}–{wins.high:.1%})"


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else str(count)
