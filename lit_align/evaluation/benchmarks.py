"""Benchmarks by EleutherAI's lm-evaluation-harness, on a model as an evaluation has loaded it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lit_align.errors import shown
from lit_align.evaluation.intervals import RESAMPLES, bootstrap_mean
from lit_align.evaluation.models import LoadedModel
from lit_align.evaluation.record import UNFINISHED, MetricEstimate, content_digest, read_json, write_json
from lit_align.files import at_home

PAPER = {"arc_challenge": 25, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5, "hellaswag": 10, "mmlu": 5}
"""The benchmarks of self-refinement's paper (arXiv:2405.21040), with the numbers of examples of the Open LLM
Leaderboard's first version."""
TASK_PRESETS: Mapping[str, Mapping[str, int]] = {"paper": PAPER}
KEPT = "benchmarks.json"
_NAMES = [re.compile(rf"^{key}:[ \t]*['\"]?([\w.-]+)", re.MULTILINE) for key in ("task", "group")]
_NORMAL = 1.96
_ERROR_DRAWS = 100
"""Draws of the harness's own bootstrap, for metrics whose standard error has no closed form."""


@dataclass(frozen=True)
class BenchmarkTask:
    """A task of the harness.

    Args:
        name: as the harness knows it.
        fewshot: examples in front of each row; None for the task's own number.
        folder: with the task's file, if it is none of the harness's own.
    """

    name: str
    fewshot: int | None = None
    folder: str | None = None


def benchmark_tasks(text: str, fewshot: int | None = None, folder: str | None = None) -> list[BenchmarkTask]:
    """Return the tasks that a setting names.

    Args:
        text: names with commas between them: tasks, presets, or YAML files of tasks.
        fewshot: examples in front of each row; None for the preset's or the task's own number.
        folder: with files of further tasks.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file names no task.

    >>> benchmark_tasks("arc_easy")
    [BenchmarkTask(name='arc_easy', fewshot=None, folder=None)]
    >>> [task.name for task in benchmark_tasks("paper")][:2]
    ['arc_challenge', 'truthfulqa_mc2']
    """
    tasks: list[BenchmarkTask] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part in TASK_PRESETS:
            tasks += [
                BenchmarkTask(name, count if fewshot is None else fewshot)
                for name, count in TASK_PRESETS[part].items()
            ]
        elif part.endswith((".yaml", ".yml")):
            tasks.append(BenchmarkTask(_task_of(at_home(part)), fewshot, str(at_home(part).parent)))
        else:
            tasks.append(BenchmarkTask(part, fewshot, folder))
    return list(dict.fromkeys(tasks))


def _task_of(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"--tasks {path}: no such file; expected a task of lm-evaluation-harness")
    text = path.read_text("utf-8")
    matches = [match[1] for name in _NAMES if (match := name.search(text))]
    if not matches:
        raise ValueError(
            f"{path}: no line 'task: NAME' or 'group: NAME'; expected a task or group of lm-evaluation-harness"
        )
    return matches[0]


def check_harness() -> None:
    """Raise unless the harness is installed.

    Raises:
        ModuleNotFoundError: names the extra.
    """
    if find_spec("lm_eval") is None:
        raise ModuleNotFoundError("--tasks needs lm-evaluation-harness: pip install 'lit-align[benchmarks]'")


def benchmark_metrics(
    loaded: LoadedModel,
    tasks: Iterable[BenchmarkTask],
    folder: Path,
    limit: int | None = None,
    batch_size: int = 32,
    count: int = RESAMPLES,
) -> dict[str, MetricEstimate]:
    """Run benchmarks; those that are in the model's folder already are read.

    The model's answers are kept until a task has finished, so that an interrupted process goes on there.

    Raises:
        ModuleNotFoundError: the harness is not installed.
        ValueError: there is no such task.
    """
    check_harness()
    kept = read_json(folder / KEPT) or {}
    metrics: dict[str, MetricEstimate] = {}
    for task in tasks:
        settings = {**asdict(task), "limit": limit, "model": loaded.identity, "harness": metadata.version("lm_eval")}
        known = kept.get(task.name)
        if known is None or known["settings"] != settings:
            answers = folder / UNFINISHED / f"{task.name}-{content_digest(settings)[:8]}"
            numbers = _run(loaded, task, limit, batch_size, count, answers)
            known = {"settings": settings, "metrics": {name: asdict(number) for name, number in numbers.items()}}
            kept[task.name] = known
            write_json(folder / KEPT, kept)
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        metrics |= {name: MetricEstimate(**number) for name, number in known["metrics"].items()}
    return metrics


def _run(
    loaded: LoadedModel, task: BenchmarkTask, limit: int | None, batch_size: int, count: int, answers: Path
) -> dict[str, MetricEstimate]:
    harness: Any = import_module("lm_eval")
    models: Any = import_module("lm_eval.models.huggingface")
    tasks: Any = import_module("lm_eval.tasks")
    manager = tasks.TaskManager(include_path=task.folder)
    if task.name not in manager.all_tasks:
        raise ValueError(f"--tasks {shown(task.name)}: lm-evaluation-harness has no such task")
    device = str(loaded.device)
    model = models.HFLM(loaded.model, tokenizer=loaded.encoder.tokenizer, batch_size=batch_size, device=device)
    results = harness.simple_evaluate(
        model=model,
        tasks=[task.name],
        num_fewshot=task.fewshot,
        limit=limit,
        bootstrap_iters=_ERROR_DRAWS,  # without draws, groups have no standard errors either
        task_manager=manager,
        use_cache=str(answers),
    )
    return _metrics(task.name, results, count)


def _metrics(task: str, results: Mapping[str, Any], count: int) -> dict[str, MetricEstimate]:
    """Return the numbers of a task, with an interval over its rows where the number is a mean over them."""
    metrics: dict[str, MetricEstimate] = {}
    rows: Sequence[Mapping[str, Any]] = results.get("samples", {}).get(task, ())
    for key, value in results["results"][task].items():
        name, _, filtered = key.partition(",")
        if not isinstance(value, int | float) or isinstance(value, bool) or "stderr" in name or not filtered:
            continue
        label = f"benchmark/{task}/{name}" + ("" if filtered == "none" else f"/{filtered}")
        own = [row.get(name) for row in rows if row.get("filter", "none") == filtered]
        error, size = (
            results["results"][task].get(f"{name}_stderr,{filtered}"),
            results["results"][task].get("sample_len"),
        )
        metrics[label] = _estimate(float(value), own, error, count, len(own) or int(size or 0))
    return metrics


def _estimate(value: float, rows: Sequence[Any], error: Any, count: int, size: int) -> MetricEstimate:
    """Return a number with its interval: over rows, or else by the harness's standard error."""
    if rows and all(isinstance(row, int | float) for row in rows) and np.isclose(np.mean(rows), value):
        return bootstrap_mean(np.asarray(rows, dtype=np.float64)[:, None], count)
    if isinstance(error, int | float) and np.isfinite(error):
        return MetricEstimate(value, float(value - _NORMAL * error), float(value + _NORMAL * error), size)
    return MetricEstimate(value, n=size)
