"""The report command: numbers and figures about a run's data, read as the run would read it; no model is loaded."""

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

from lit_align.cli.configuration import load_yaml, read_extensions
from lit_align.cli.error_messages import print_warning
from lit_align.cli.parsing import USER_ERRORS, Parser, prepare_parsing
from lit_align.cli.settings import DEBUG
from lit_align.data import LengthReport, PreferenceData
from lit_align.data.report.figures import draw
from lit_align.data.report.lengths import score_gaps
from lit_align.data.report.table import show
from lit_align.errors import check_range, printable
from lit_align.locate import tokenizer_source
from lit_align.objectives import Objective

KEYS = ("data", "seed_everything", "extend", "out", "max_dropped", "max_truncated", "max_contradictory", "max_overlap")
MODEL_KEYS = ("policy", "objective")
"""Keys of a run's configuration that its data depends on."""


@final
@dataclass(frozen=True)
class Limits:
    """The largest shares that a report accepts; each split is checked by itself.

    Args:
        max_dropped: share of the rows that may be left out; data.on_bad_row and data.max_dropped are applied before.
        max_truncated: share of the responses that may be cut.
        max_contradictory: share of the pairs that may also be in the data with chosen and rejected swapped.
        max_overlap: share of the pairs for evaluation that may have a prompt of the training data.

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
        """Return one line for each limit that a split exceeds."""
        lengths, pairs = report.lengths, report.pairs
        truncated = lengths.chosen_truncated + lengths.rejected_truncated
        responses = lengths.chosen.count + lengths.rejected.count
        checks = (
            ("max_dropped", "rows were left out", sum(report.dropped.values()), report.rows),
            ("max_truncated", "responses were cut", truncated, responses),
            ("max_contradictory", "pairs are also there with the sides swapped", report.contradictions, pairs),
            ("max_overlap", "pairs have a prompt that is trained on", report.seen_prompts or 0, pairs),
        )
        limits: dict[str, float] = vars(self)
        return [
            f"data.{split}: {count} of {total} {what}: {count / total:.2%}, and {name} is {limits[name]:.2%}"
            for name, what, count, total in checks
            if count > limits[name] * total
        ]


class DataParser(Parser):
    """Accepts the whole configuration of a run and keeps what its data depends on."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration's text without the sections that are not about data."""
        try:
            config = load_yaml(content)
        except yaml.YAMLError as error:
            self.error(f"the configuration is not plain YAML: {error}")
        if isinstance(config, dict):
            model = config.get("model")
            needed = {key: value for key, value in config.items() if key in KEYS}
            if isinstance(model, dict):
                model_keys = MODEL_KEYS if config.get("task", "preference") == "preference" else ("policy",)
                needed["model"] = {key: value for key, value in model.items() if key in model_keys}
            content = yaml.safe_dump(needed)
        return super().parse_string(content, *args, **kwargs)


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit codes: 1 for data beyond a limit, 2 for data that cannot be read."""
    warnings.showwarning = print_warning
    try:
        prepare_parsing(read_extensions(arguments))
        settings = _settings(arguments)
        limits = Limits(**{name: settings[name] for name in Limits.__dataclass_fields__})
        reports = report_data(settings.data, Path(settings.out))
    except USER_ERRORS as error:
        if DEBUG in os.environ:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    failures = [line for split, report in reports.items() for line in limits.failures(split, report)]
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def report_data(data: PreferenceData, folder: Path) -> Mapping[str, LengthReport]:
    """Read the data, print a table, and write figures and ``data.json``.

    Args:
        data: with a tokenizer, or the name of one.
        folder: for the files.

    Returns:
        The report of each split.
    """
    reports = data.prepare_all()
    show(reports)
    folder.mkdir(parents=True, exist_ok=True)
    gaps = {split: score_gaps(prepared) for split, prepared in data.splits.items()}
    figures = draw(folder, reports, {split: values for split, values in gaps.items() if len(values)})
    numbers = folder / "data.json"
    text = json.dumps({split: report.as_dict() for split, report in reports.items()}, indent=2, allow_nan=False)
    numbers.write_text(f"{text}\n", encoding="utf-8")
    print(*[*figures, numbers], sep="\n")
    return reports


def _settings(arguments: Sequence[str]) -> Namespace:
    """Parse the settings and build the data module."""
    parser = DataParser(prog="python -m lit_align report", description=__doc__)
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
    settings = parser.parse_args(list(arguments))
    if settings.data.tokenizer is None and settings.model.policy is not None:
        settings.data.tokenizer = tokenizer_source(settings.model.policy)
    if settings.data.seed is None:
        settings.data.seed = settings.seed_everything
    instances: Namespace = parser.instantiate(settings)
    return instances


def _needs_prompted(objective: Objective | None) -> bool:
    return objective is not None and objective.needs.prompted
