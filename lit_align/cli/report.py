"""The report command: a run's data, read as the run would read it, in numbers and figures; no model is loaded."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml
from jsonargparse import Namespace

from lit_align.cli import parsing
from lit_align.data import DataError, LengthReport, PreferenceData
from lit_align.data.report.figures import draw
from lit_align.data.report.lengths import score_gaps
from lit_align.data.report.table import show
from lit_align.errors import check_range, printable
from lit_align.objectives import Objective

DEBUG = "LIT_ALIGN_DEBUG"
UNREADABLE = (DataError, ValueError, TypeError, OSError, ImportError)
FAILED, REFUSED = 1, 2
READ = ("data", "seed_everything", "extend", "out", "max_dropped", "max_truncated", "max_contradictory", "max_overlap")
READ_OF_MODEL = ("policy", "objective")


@final
@dataclass(frozen=True)
class Limits:
    """The shares above which a report fails; every split is judged by itself.

    Args:
        max_dropped: of the rows, how many may be left out; data.on_bad_row and data.max_dropped have their say before.
        max_truncated: of the responses, how many may be cut.
        max_contradictory: of the pairs, how many may stand there the other way round as well.
        max_overlap: of the pairs for evaluation, how many may have a prompt that is trained on.

    Raises:
        ValueError: a share is not between 0 and 1.
    """

    max_dropped: float = 0.1
    max_truncated: float = 0.5
    max_contradictory: float = 0.1
    max_overlap: float = 0.1

    def __post_init__(self) -> None:
        for name, share in vars(self).items():
            check_range(name, share, 0, 1)

    def failures(self, split: str, report: LengthReport) -> list[str]:
        """One line for each limit that a split does not keep."""
        lengths, pairs = report.lengths, report.pairs
        cut, responses = (
            lengths.chosen_truncated + lengths.rejected_truncated,
            lengths.chosen.count + lengths.rejected.count,
        )
        found = (
            ("max_dropped", "rows were left out", sum(report.dropped.values()), report.rows),
            ("max_truncated", "responses were cut", cut, responses),
            ("max_contradictory", "pairs stand there the other way round as well", report.contradictions, pairs),
            ("max_overlap", "pairs have a prompt that is trained on", report.seen_prompts or 0, pairs),
        )
        limits: dict[str, float] = vars(self)
        return [
            f"data.{split}: {count} of {total} {words}: {count / total:.2%}, and {name} is {limits[name]:.2%}"
            for name, words, count, total in found
            if count > limits[name] * total
        ]


class Parser(parsing.Parser):
    """Takes the whole configuration of a run and reads of it what the data needs."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration's text without its sections that are not about data."""
        try:
            whole = parsing.load_yaml(content)
        except yaml.YAMLError as error:
            self.error(f"the configuration is not plain YAML: {error}")
        if isinstance(whole, dict):
            model = whole.get("model")
            kept = {key: value for key, value in whole.items() if key in READ}
            if isinstance(model, dict):
                read = READ_OF_MODEL if whole.get("task", "preference") == "preference" else ("policy",)
                kept["model"] = {key: value for key, value in model.items() if key in read}
            content = yaml.safe_dump(kept)
        return super().parse_string(content, *args, **kwargs)


def main() -> None:
    """Run the command on ``sys.argv``; exit codes: 1 for data beyond a limit, 2 for data that cannot be read."""
    warnings.showwarning = _one_line
    try:
        parsing.prepare(parsing.extensions_in(sys.argv))
        settings = _settings(sys.argv[2:])
        limits = Limits(**{name: settings[name] for name in Limits.__dataclass_fields__})
        reports = _report(settings.data, Path(settings.out))
    except UNREADABLE as error:
        if DEBUG in os.environ:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(REFUSED)
    failures = [line for split, report in reports.items() for line in limits.failures(split, report)]
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    sys.exit(FAILED if failures else 0)


def _settings(words: Sequence[str]) -> Namespace:
    """The settings with the data ready to be read."""
    parser = Parser(prog="python -m lit_align report", description=__doc__)
    parser.add_argument("--config", action="config", help="A run's configuration; of several, later ones win.")
    parser.add_argument("--out", type=str, default="runs/report", help="Folder for the figures and data.json.")
    parser.add_argument("--extend", type=str, default=None, help="As for fit: folders or modules with your own parts.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Seed of data without one.")
    parser.add_argument("--model.policy", type=str, default=None, help="Its tokenizer is taken if data names none.")
    parser.add_argument(
        "--model.objective", type=Objective | None, default=None, help="Says whether a quality prompt needs room."
    )
    parser.add_class_arguments(Limits)
    parser.add_lightning_class_args(PreferenceData, "data")
    parser.link_arguments("model.objective", "data.prompted", compute_fn=_needs_prompted, apply_on="instantiate")
    settings = parser.parse_args(list(words))
    if settings.data.tokenizer is None:
        settings.data.tokenizer = settings.model.policy
    if settings.data.seed is None:
        settings.data.seed = settings.seed_everything
    ready: Namespace = parser.instantiate(settings)
    return ready


def _needs_prompted(objective: Objective | None) -> bool:
    return objective is not None and objective.needs.prompted


def _report(data: PreferenceData, folder: Path) -> Mapping[str, LengthReport]:
    """Read the data, print the table, and write figures and numbers."""
    reports = data.prepare_all()
    show(reports)
    folder.mkdir(parents=True, exist_ok=True)
    gaps = {split: score_gaps(prepared) for split, prepared in data.splits.items()}
    files = draw(folder, reports, {split: found for split, found in gaps.items() if len(found)})
    numbers = folder / "data.json"
    text = json.dumps({split: report.as_dict() for split, report in reports.items()}, indent=2, allow_nan=False)
    numbers.write_text(f"{text}\n", encoding="utf-8")
    print(*[*files, numbers], sep="\n")
    return reports


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
