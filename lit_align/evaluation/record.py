"""The files of an evaluation: ``evaluation.json`` with its numbers, and the rows of each model beside it.

.. code-block:: text

    evaluation/
      evaluation.json            settings, and metric → value and interval of every model
      previous/N/                numbers that later commands with other settings have replaced
      models/NAME/
        settings.json            what the responses depend on
        responses.jsonl          index, seed, prompt, response, tokens, ended
        policy.jsonl             entropy (nats per token), kl (nats, only with a reference), and of which response
        scores.jsonl             index, seed, characters, and score, comparison (1 won, 0.5 tie, 0 lost) or both
        scores-JUDGE.jsonl       the same of a further judge
        pairs.jsonl              of preference sets: index, sum, mean, lengths, and the columns to group by
        previous/N/              rows that depended on something that has changed
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lit_align.errors import DataError, kind, shown
from lit_align.files import to_disk

FILE = "evaluation.json"
FILE_FORMAT = 1
"""Number of the file format; a reader refuses those that it does not know."""
UNFINISHED = "unfinished"
"""Folder of what is kept only until the numbers that it belongs to are written."""
RESPONSES, SCORES, POLICY, PAIRS = "responses.jsonl", "scores.jsonl", "policy.jsonl", "pairs.jsonl"


@dataclass(frozen=True)
class MetricEstimate:
    """A number with its 95 % interval.

    Args:
        value: the number.
        low: lower end of the interval; None where none is computed.
        high: its upper end.
        n: rows, or pairs, that the number is computed from.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} is {number}; expected a finite number")


@dataclass(frozen=True)
class ModelRecord:
    """The evaluation of one model.

    Args:
        name: short and unique within the evaluation.
        path: run folder, checkpoint, or Hugging Face folder or name, as it was given.
        settings: ``prompts``, ``seeds``, ``sampling``, ``judge``, ``judges``, ``baseline``, ``reference``, ``pairs``,
            ``tasks``, ``weights`` and ``versions``, those that apply.
        metrics: name → number and interval, such as ``win_rate`` or ``length/tokens``.
        folder: with the rows.
    """

    name: str
    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, MetricEstimate] = field(default_factory=dict)
    folder: Path = Path()

    def responses(self) -> list[dict[str, Any]]:
        """Return the rows of ``responses.jsonl``; empty without the file."""
        return list(read_jsonl(self.folder / RESPONSES))

    def scores(self, judge: str = "") -> list[dict[str, Any]]:
        """Return what a judge has given, by default the first one; empty without its file."""
        return list(read_jsonl(self.folder / scores_file(judge)))

    def pairs(self) -> list[dict[str, Any]]:
        """Return the rows of ``pairs.jsonl``, which an evaluation on a preference set has; empty without the file."""
        return list(read_jsonl(self.folder / PAIRS))


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation of one or several models.

    Args:
        models: in the order in which they were named.
        baseline: name of the model that the others are compared with; None for none.
        warnings: what a reader must know, such as lengths that hardly overlap.
    """

    models: tuple[ModelRecord, ...]
    baseline: str | None = None
    warnings: tuple[str, ...] = ()


def scores_file(judge: str = "") -> str:
    """Return the name of the file with the judgements of a judge; that of the first judge has no name in it.

    >>> scores_file(), scores_file("length")
    ('scores.jsonl', 'scores-length.jsonl')
    """
    return f"scores-{judge}.jsonl" if judge else SCORES


def judged_name(judge: str, metric: str) -> str:
    """Return what a number is called that a judge gives; those of the first judge have plain names.

    >>> judged_name("", "win_rate"), judged_name("length", "win_rate")
    ('win_rate', 'judges/length/win_rate')
    """
    return f"judges/{judge}/{metric}" if judge else metric


def model_folder(folder: Path, name: str) -> Path:
    """Return the folder of a model's rows in the folder of an evaluation."""
    return folder / "models" / name


def write_evaluation(folder: Path, record: EvaluationRecord) -> Path:
    """Write ``evaluation.json``, whole or not at all, and return its path."""
    models = [
        {
            "name": model.name,
            "path": model.path,
            "folder": str(model_folder(Path(), model.name)),
            "settings": dict(model.settings),
            "metrics": {name: asdict(number) for name, number in model.metrics.items()},
        }
        for model in record.models
    ]
    content = {"format": FILE_FORMAT, "baseline": record.baseline, "warnings": list(record.warnings), "models": models}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return folder / FILE


def read_evaluation(folder: Path | str) -> EvaluationRecord:
    """Read the numbers of an evaluation; the rows are read when they are asked for.

    Args:
        folder: of the evaluation, or its ``evaluation.json``.

    Raises:
        FileNotFoundError: there is no evaluation.
        DataError: the file is damaged, or of another version.
    """
    folder = Path(folder)
    path = folder if folder.suffix == ".json" else folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; python -m lit_align evaluate writes it")
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(str(path), f"not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        number = content.get("format") if isinstance(content, dict) else kind(content)
        raise DataError(str(path), f"found {shown(number)}; expected an evaluation of format {FILE_FORMAT}", "format")
    try:
        models = tuple(_model(model, path.parent) for model in content["models"])
        return EvaluationRecord(models, content["baseline"], tuple(content["warnings"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(str(path), f"damaged: {type(error).__name__}: {error}") from error


def _model(content: Mapping[str, Any], folder: Path) -> ModelRecord:
    metrics = {name: MetricEstimate(**number) for name, number in content["metrics"].items()}
    return ModelRecord(content["name"], content["path"], content["settings"], metrics, folder / content["folder"])


def write_whole(path: Path, text: str) -> None:
    """Write a file, or leave the old one as it was if that fails or is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    to_disk(temporary)
    temporary.replace(path)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    write_whole(path, "".join(_line(row) for row in rows))


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows as JSON lines, and flush them to disk.

    Call ``drop_cut_line`` once before the first call, in case an earlier process was interrupted while it wrote.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(_line(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def drop_cut_line(path: Path) -> None:
    """Remove a last line that has no end, which an interrupted process has left."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file of JSON lines, but for a last one that was cut; nothing if there is no file.

    Raises:
        DataError: a line is no JSON object; names file and line.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}", f"not JSON: {error}; remove the line to compute it anew") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}", f"found {kind(row)}; expected an object")
        yield row


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, whole or not at all."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object of a JSON file; None if there is no file, or no object in it."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


class RowFile:
    """Rows that are kept on disk as they are computed, so that an interrupted process goes on where it was.

    Rows that depend on something that has changed are moved to ``previous/<n>`` beside them.

    Args:
        path: of the rows.
        settings: all that the rows depend on, but for what each row says of itself, as JSON values.
        beside: file with the settings; that of the rows with the ending ``.settings.json`` by default.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], beside: Path | None = None) -> None:
        self.path = path
        self.changed: list[str] = []
        """Settings that have changed since the rows that were moved aside."""
        beside = beside or path.with_suffix(".settings.json")
        settings = json.loads(json.dumps(settings, default=str))
        before = read_json(beside) or {}
        if before != settings:
            if path.is_file():
                self.changed = [name for name in settings if settings[name] != before.get(name)]
                move_rows_aside([path, beside])
            write_json(beside, settings)
        drop_cut_line(path)
        self.rows = list(read_jsonl(path))

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, and flush them to disk."""
        own = [dict(row) for row in rows]
        append_jsonl(self.path, own)
        self.rows += own


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other commands from the rows of a model, and wait for one that computes them.

    Args:
        folder: of the model's rows; it is made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")  # of a process that is killed it is free again
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: another command evaluates it; this one waits", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def move_rows_aside(paths: Sequence[Path]) -> Path:
    """Move files of one folder to ``previous/<n>`` in it, and return that."""
    aside = next_previous(paths[0].parent)
    aside.mkdir(parents=True)
    for path in (path for path in paths if path.is_file()):
        path.rename(aside / path.name)
    return aside


def next_previous(folder: Path) -> Path:
    """Return the first ``previous/<n>`` of a folder that is not taken."""
    taken = [int(path.name) for path in (folder / "previous").glob("*") if path.name.isdigit()]
    return folder / "previous" / str(1 + max(taken, default=0))


def content_digest(content: Any) -> str:
    """Return a digest of JSON values."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
