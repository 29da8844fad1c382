"""Joining evaluations in one folder: later models, judges, pairs and tasks come beside the earlier ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_align.errors import shown
from lit_align.evaluation.intervals import as_cells
from lit_align.evaluation.record import (
    FILE,
    EvaluationRecord,
    MetricEstimate,
    ModelRecord,
    judged_name,
    next_previous,
    read_evaluation,
    write_evaluation,
)
from lit_align.evaluation.win_rates import OVERLAP_NOTE, length_controlled

CONTROLLED = "win_rate/length_controlled"
PROMPT_SETTINGS = ("prompts", "seeds", "sampling")
_JUDGED = ("score", "win_rate", "judge_prefers_longer")
_UNCOMPARED = ("count",)
"""Settings that may differ between models of one evaluation: pairs that are too long for one are left out."""
_NOTES = {"pairs are longer": "pairs", "had no verdict": "judge"}
"""Words of a warning → part of an evaluation that it belongs to."""


@dataclass
class EvaluationPart:
    """What one way of evaluating has given for one model: prompts, a judge, preference pairs, a task.

    Args:
        settings: that its numbers depend on, by their keys in the record.
        metrics: the numbers.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, MetricEstimate] = field(default_factory=dict)


Parts = dict[str, EvaluationPart]


def part_of(metric: str) -> str:
    """Return the part of an evaluation that a number belongs to.

    >>> [part_of(name) for name in ("length/words", "kl", "win_rate/tie", "judges/b/score", "benchmark/arc_easy/acc")]
    ['prompts', 'reference', 'judge', 'judges/b', 'tasks/arc_easy']
    """
    first, *rest = metric.split("/")
    if first in ("judges", "benchmark"):
        return f"{'tasks' if first == 'benchmark' else first}/{rest[0]}"
    if first in ("kl", "kl_per_token"):
        return "reference"
    return "judge" if first in _JUDGED else first if first == "pairs" else "prompts"


def parts_of(model: ModelRecord) -> Parts:
    """Return the parts of a model's evaluation by their names."""
    parts: Parts = {}
    for name, number in model.metrics.items():
        parts.setdefault(part_of(name), EvaluationPart()).metrics[name] = number
    for name, part in parts.items():
        kind, _, key = name.partition("/")
        if kind == "prompts":
            part.settings = {key: model.settings[key] for key in PROMPT_SETTINGS if key in model.settings}
        elif kind in ("judges", "tasks"):
            part.settings = {kind: {key: (model.settings.get(kind) or {}).get(key)}}
        else:
            part.settings = {kind: model.settings.get(kind)}
    return parts


def join_evaluation(folder: Path, record: EvaluationRecord) -> tuple[EvaluationRecord, list[str]]:
    """Write ``evaluation.json`` with the numbers that are in it already, as far as they go with the new ones.

    What was computed with other settings, or of other weights, is left out; the earlier file is then kept in
    ``previous/<n>``. Length-controlled win rates are fitted to all models together, as if they had been evaluated at
    once.

    Returns:
        What is written, and why numbers were left out, if any were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # several commands may end at once
        earlier = read_evaluation(folder) if (folder / FILE).is_file() else EvaluationRecord(())
        record, reasons = joined(earlier, record)
        if reasons:
            aside = next_previous(folder)
            aside.mkdir(parents=True)
            shutil.copy2(folder / FILE, aside / FILE)
            reasons = [f"{reason}; the earlier numbers are in {aside / FILE}" for reason in reasons]
        write_evaluation(folder, record)
    return record, reasons


def joined(earlier: EvaluationRecord, later: EvaluationRecord) -> tuple[EvaluationRecord, list[str]]:
    """Return two evaluations as one, and why numbers of the earlier one were left out.

    Args:
        earlier: its numbers stay, unless the later one has others in their place or they do not go with it.
        later: all of its numbers stay.
    """
    new = {model.name: parts_of(model) for model in later.models}
    wanted = {name: part.settings for parts in new.values() for name, part in parts.items()}
    stale = _stale_models(earlier, later)
    reasons = [f"the weights of {name} have changed" for name in stale]
    unfit = {name: reason for name, reason in _differences(earlier, wanted)}
    if _changed_baseline(earlier, later, stale):
        unfit |= dict.fromkeys(_judging(earlier), "the baseline is another one")
    if "prompts" in unfit:
        unfit |= dict.fromkeys([*_judging(earlier), "reference"], unfit["prompts"])
    reasons += dict.fromkeys(unfit.values())
    models: dict[str, ModelRecord] = {}
    for model in earlier.models:
        kept = {} if model.name in stale else {name: p for name, p in parts_of(model).items() if name not in unfit}
        later_model = next((own for own in later.models if own.name == model.name), None)
        if later_model is not None:
            models[model.name] = _merged(model, kept, later_model, new[model.name])
        elif kept:
            models[model.name] = _merged(model, kept, model, {})
    fresh = [model for model in later.models if model.name not in models]
    models |= {model.name: _merged(model, {}, model, new[model.name]) for model in fresh}
    baseline = later.baseline or (earlier.baseline if earlier.baseline in models else None)
    order = sorted(models.values(), key=lambda model: model.name == baseline)
    warnings = dict.fromkeys([*_lasting(earlier, unfit, new), *later.warnings])
    record = EvaluationRecord(tuple(order), baseline, tuple(warnings))
    known = [_compared(earlier), _compared(later)]
    judges = [name for name, own in _compared(record).items() if all(own != each.get(name) for each in known)]
    return control_lengths(record, judges), reasons


def _stale_models(earlier: EvaluationRecord, later: EvaluationRecord) -> list[str]:
    """Return the models whose weights are others than before."""
    before = {model.name: model.settings.get("weights") for model in earlier.models}
    return [m.name for m in later.models if m.name in before and before[m.name] != m.settings.get("weights")]


def _differences(earlier: EvaluationRecord, wanted: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the parts of an evaluation that do not go with the settings of a later one, and why.

    The reference may be another one for each model, and is compared by ``_merged``.
    """
    for name, settings in wanted.items():
        for model in earlier.models if name != "reference" else ():
            part = parts_of(model).get(name)
            reason = "" if part is None else _difference(part.settings, settings)
            if reason:
                yield name, reason
                break


def _difference(before: Any, after: Any, key: str = "") -> str:
    """Return in what two settings differ, as far as that matters; empty if they do not."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [name for name in dict.fromkeys([*before, *after]) if name not in _UNCOMPARED]
        parts = (_difference(before.get(name), after.get(name), f"{key}.{name}".lstrip(".")) for name in keys)
        return next(filter(None, parts), "")
    same = json.dumps(before, default=str) == json.dumps(after, default=str)
    return "" if same else f"{key} was {shown(before)} and is {shown(after)}"


def _changed_baseline(earlier: EvaluationRecord, later: EvaluationRecord, stale: list[str]) -> bool:
    both = earlier.baseline is not None and later.baseline is not None
    return both and (earlier.baseline != later.baseline or later.baseline in stale)


def _judging(record: EvaluationRecord) -> list[str]:
    names = dict.fromkeys(name for model in record.models for name in parts_of(model))
    return [name for name in names if name.partition("/")[0] in ("judge", "judges")]


def _merged(earlier: ModelRecord, kept: Parts, later: ModelRecord, new: Parts) -> ModelRecord:
    """Return the parts of a model that are kept, and the new ones in their places."""
    parts = kept | new
    settings = {key: value for key, value in later.settings.items() if key not in ("judges", "tasks")}
    for name in (name for name in kept if name not in new):
        settings |= {key: value for key, value in kept[name].settings.items() if key not in ("judges", "tasks")}
    for kind in ("judges", "tasks"):
        own = [part.settings[kind] for name, part in parts.items() if name.startswith(f"{kind}/")]
        settings |= {kind: {key: value for each in own for key, value in each.items()}} if own else {}
    if settings.get("baseline") is None and any(name.startswith("judge") for name in parts):
        settings["baseline"] = earlier.settings.get("baseline")
    metrics = {name: number for part in parts.values() for name, number in part.metrics.items()}
    return replace(later, settings=settings, metrics=metrics)


def _lasting(earlier: EvaluationRecord, unfit: Mapping[str, str], new: Mapping[str, Parts]) -> Iterator[str]:
    """Yield the warnings of an earlier evaluation that hold for what is kept of it."""
    for warning in earlier.warnings:
        part = next((part for words, part in _NOTES.items() if words in warning), "")
        replaced = any(part in parts and warning.startswith(f"{name}: ") for name, parts in new.items())
        about = next((name for name in unfit if OVERLAP_NOTE in warning and name.startswith("judge")), part)
        if about not in unfit and not replaced:
            yield warning


def _compared(record: EvaluationRecord) -> dict[str, list[str]]:
    """Return judge → the models that it has compared with the baseline."""
    judges = dict.fromkeys(["", *(name for model in record.models for name in model.settings.get("judges") or {})])
    compared = {
        judge: [model.name for model in record.models if judged_name(judge, "win_rate") in model.metrics]
        for judge in judges
    }
    return {judge: names for judge, names in compared.items() if names}


def control_lengths(record: EvaluationRecord, judges: Sequence[str] | None = None) -> EvaluationRecord:
    """Compute the length-controlled win rates of all models from their rows, and warn where lengths hardly overlap.

    Args:
        record: of models whose rows are written; numbers of that name in it are replaced.
        judges: whose comparisons are used; None for those of all.
    """
    baseline = next((model for model in record.models if model.name == record.baseline), None)
    judges = list(_compared(record)) if judges is None else judges
    warnings = [
        warning
        for warning in record.warnings
        if OVERLAP_NOTE not in warning or not any(_is_of(warning, judge) for judge in judges)
    ]
    models = {model.name: model for model in record.models}
    for judge in judges if baseline is not None else ():
        own = [model for model in models.values() if judged_name(judge, "win_rate") in model.metrics]
        rows = {model.name: model.scores(judge) for model in own}
        base = {_key(row): row["characters"] for row in (baseline or own[0]).scores(judge)}
        compared = {name: as_cells([(*_key(row), row["comparison"]) for row in each]) for name, each in rows.items()}
        longer = {
            name: as_cells([(*_key(row), float(row["characters"] - base[_key(row)])) for row in each])
            for name, each in rows.items()
        }
        controlled, notes = length_controlled(compared, longer)
        warnings += [f"{note} ({judge})" if judge else note for note in notes]
        for name, number in controlled.items():
            metrics = {**models[name].metrics, judged_name(judge, CONTROLLED): number}
            models[name] = replace(models[name], metrics=metrics)
    return replace(record, models=tuple(models.values()), warnings=tuple(warnings))


def _is_of(warning: str, judge: str) -> bool:
    """Whether a warning about lengths is about the comparisons of a judge."""
    return warning.endswith(f" ({judge})" if judge else "an extrapolation")


def _key(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["index"], row["seed"]
