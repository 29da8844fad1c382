"""What a run has left in its folder, read without importing torch or building anything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from lit_align.errors import DataError, kind
from lit_align.evaluation.record import EvaluationRecord, ModelRecord, read_evaluation, read_jsonl

Curve: TypeAlias = dict[int, float]
"""Step → value, in the order of the steps."""
CONFIG, METRICS, DATA = "config.yaml", "metrics.jsonl", "data.json"
SAMPLE_ROWS, PREDICTIONS = "samples.jsonl", "predictions.jsonl"
ENVIRONMENT = "environment.json"
MARGINS = Path("figures") / "margins.json"
_MISSING = {DATA: "no data report", SAMPLE_ROWS: "no samples", ENVIRONMENT: "its environment is not known"}


class NotARunError(ValueError):
    """Raised for a folder that holds no run."""


@dataclass(frozen=True)
class Run:
    """A run's folder.

    Args:
        name: short, and unique among the runs that are compared.
        folder: of the run.
        settings: dotted key → value.
        curves: metric → its curve, as reported last where a step was reported twice.
        samples: rows of ``samples.jsonl``.
        data: split → what ``data.json`` says of it.
        predictions: rows of ``predictions.jsonl``.
        margins: content of ``figures/margins.json``; empty without one.
        environment: versions and device.
        notes: what is missing.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    predictions: Sequence[Mapping[str, Any]] = ()
    margins: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def last(self, metric: str) -> float | None:
        """Return the last value of a metric; None if it was never reported."""
        curve = self.curves.get(metric)
        return curve[max(curve)] if curve else None

    @property
    def step(self) -> int:
        """The last step that anything was reported for."""
        return max((max(curve) for curve in self.curves.values()), default=0)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders among some folders, and the runs inside of those that are a sweep.

    Args:
        folders: of runs, or of sweeps, whose cells are taken in the order of their names.

    Raises:
        NotARunError: a folder does not exist, or holds no run at any depth that a sweep has.
    """
    runs: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise NotARunError(f"{folder}: no such folder; expected the folder of a run or of a sweep")
        cells = [folder] if _is_run(folder) else [path for path in sorted(folder.rglob("*")) if _is_cell(path, folder)]
        if not cells:
            raise NotARunError(
                f"{folder} holds no run: neither {CONFIG} nor {METRICS} is in it, or in a folder inside of it"
            )
        runs += [cell for cell in cells if cell not in runs]
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / METRICS).is_file() or (folder / CONFIG).is_file()


def _is_cell(path: Path, sweep: Path) -> bool:
    """Return whether a folder in a sweep is a run, and not one that was moved aside."""
    parts = path.relative_to(sweep).parts
    return path.is_dir() and "previous" not in parts and len(parts) <= 2 and _is_run(path)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read runs, each named by as much of its path as tells it from the others.

    Raises:
        NotARunError: a run has reported nothing.
        DataError: a file is damaged; names file and line.
    """
    names = short_names([folder.resolve() for folder in folders])
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that differ from each other.

    >>> short_names([Path("/runs/a/dpo"), Path("/runs/b/dpo"), Path("/runs/ipo")])
    ['a/dpo', 'b/dpo', 'ipo']
    """
    names = []
    for path in paths:
        others = [other.parts for other in paths if other != path]
        ends = (path.parts[-count:] for count in range(1, len(path.parts) + 1))
        names.append(str(Path(*next(end for end in ends if all(other[-len(end) :] != end for other in others)))))
    return names


def read_run(folder: Path, name: str = "") -> Run:
    """Read what a run has left in its folder.

    Raises:
        NotARunError: it has reported nothing.
        DataError: a file is damaged; names file and line.
    """
    curves = curves_of(read_jsonl(folder / METRICS))
    if not curves:
        what = "is empty" if (folder / METRICS).is_file() else "is missing"
        raise NotARunError(f"{folder}: {METRICS} {what}: the run has not reported anything yet")
    settings = flatten(_read_yaml(folder / CONFIG))
    expected = [file for file in _MISSING if file != SAMPLE_ROWS or settings.get("task") != "reward"]
    notes = [_MISSING[file] for file in expected if not (folder / file).is_file()]
    if not settings:
        notes.append("its settings are not known")
    content = _read_json(folder / DATA)
    run = Run(
        name=name or folder.resolve().name,
        folder=folder,
        settings=settings,
        curves=curves,
        samples=list(read_jsonl(folder / SAMPLE_ROWS)),
        data={split: report for split, report in content.items() if isinstance(report, dict) and "lengths" in report},
        predictions=list(read_jsonl(folder / PREDICTIONS)),
        margins=_read_json(folder / MARGINS),
        environment=_read_json(folder / ENVIRONMENT),
        notes=notes,
    )
    planned = settings.get("trainer.max_steps")
    if isinstance(planned, int) and run.step < planned:
        notes.append(f"it stands at step {run.step} of {planned}")
    return run


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return metric → step → value of the rows of ``metrics.jsonl``, the later where a step was reported twice.

    Args:
        rows: ``step``, and metric → value; what is no finite number is left out.

    >>> curves_of([{"step": 5, "loss": 2.0}, {"step": 0, "loss": 3.0}, {"step": 5, "loss": 1.0, "x": None}])
    {'loss': {0: 3.0, 5: 1.0}}
    """
    curves: dict[str, Curve] = {}
    for row in rows:
        step = row.get("step")
        for name, value in row.items() if isinstance(step, int) else ():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, {})[int(step or 0)] = float(value)
    return {name: dict(sorted(curve.items())) for name, curve in curves.items()}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key → value; a part and its options are one level.

    >>> flatten({"model": {"objective": {"class_path": "lit_align.objectives.dpo", "init_args": {"beta": 0.1}}}})
    {'model.objective': 'dpo', 'model.objective.beta': 0.1}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "class_path" in value:
            flat[name] = str(value["class_path"]).rpartition(".")[2]
            flat |= flatten(value.get("init_args") or {}, f"{name}.")
        elif isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"not YAML: {' '.join(str(error).split())}") from error
    return _as_mapping(path, content or {})


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(str(path), f"not JSON: {error}") from error
    return _as_mapping(path, content)


def _as_mapping(path: Path, content: object) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise DataError(str(path), f"found {kind(content)}; expected an object")
    return content


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of an evaluation, and the run that it belongs to.

    Args:
        name: unique among the models that are shown.
        record: its numbers.
        run: name of the run in whose folder it lies; None for a model of no run, such as a baseline.
        is_baseline: whether the others are compared with it.
    """

    name: str
    record: ModelRecord
    run: str | None
    is_baseline: bool


def read_evaluations(folders: Sequence[Path], runs: Sequence[Run]) -> tuple[list[EvaluatedModel], list[str]]:
    """Read evaluations, and find the run of each model.

    Args:
        folders: of evaluations; those inside the runs' folders are read too.
        runs: that are compared.

    Returns:
        The models, and the warnings of the evaluations.
    """
    own = [run.folder / "evaluation" for run in runs if (run.folder / "evaluation" / "evaluation.json").is_file()]
    models: list[EvaluatedModel] = []
    warnings: list[str] = []
    for folder in dict.fromkeys([*folders, *own]):
        evaluation: EvaluationRecord = read_evaluation(folder)
        warnings += evaluation.warnings
        for record in evaluation.models:
            taken = {model.name for model in models}
            name = record.name if record.name not in taken else f"{record.name} ({folder})"
            models.append(EvaluatedModel(name, record, _run_of(record, runs), record.name == evaluation.baseline))
    return models, warnings


def _run_of(record: ModelRecord, runs: Sequence[Run]) -> str | None:
    path = Path(record.path).resolve()
    return next((run.name for run in runs if path.is_relative_to(run.folder.resolve())), None)
