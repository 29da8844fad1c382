"""What a cell of a sweep was started with, by which a finished one is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.cli.configuration import read_settings
from lit_align.cli.run_setup import move_aside, run_files
from lit_align.comparison.runs import flatten
from lit_align.errors import shown
from lit_align.evaluation.record import write_whole
from lit_align.files import at_home, digest

MARKER = "cell.json"
"""File in a cell's folder that says what the cell was started with, and whether it has finished."""
NOT_OF_A_RUN = ("comparison", "plan", "sweep")
"""Packages on which no run depends."""
_LIBRARIES = ("torch", "lightning", "transformers", "peft")
_LARGE = 100_000_000
"""Bytes of a file beyond which its size and date stand for its content."""


@dataclass(frozen=True)
class CellState:
    """Whether a cell has to be run.

    Args:
        kind: ``finished``, ``resume`` from a checkpoint, start ``anew`` over an earlier run of other settings or code,
            or ``start``.
        reason: why an earlier run does not count; empty if there is none.
    """

    kind: Literal["finished", "resume", "anew", "start"]
    reason: str = ""


def identify_cell(arguments: Sequence[str], share_reference: bool) -> dict[str, Any]:
    """Return all that the result of a cell depends on: its settings, the files that they name, the code."""
    settings: dict[str, Any] = {}
    for setting in read_settings(["fit", *arguments]):
        if not isinstance(setting.value, dict):  # another class: options of the one before do not count
            settings = {key: value for key, value in settings.items() if not key.startswith(f"{setting.key}.")}
        settings |= flatten({setting.key: setting.value})
    settings.pop("run", None)
    plain: dict[str, Any] = json.loads(json.dumps({**settings, "share_reference": share_reference}, default=str))
    return {
        "settings": plain,
        "files": {path: _content(at_home(path)) for path in sorted(set(_paths(settings)))},
        "code": code_version(),
    }


def _paths(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files and folders among the values of settings."""
    for key, value in settings.items():
        for text in _texts(value):
            looks_so = key.startswith(("data.", "model.policy", "extend")) or "/" in text or "." in text
            if looks_so and len(text) < 1000 and "\n" not in text and (at_home(text).exists() or "*" in text):
                yield text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)
    elif isinstance(value, str):
        yield from value.split(",")


def _content(path: Path) -> str:
    """Return a digest of a file, of all files in a folder, or of the files that a pattern matches."""
    if path.is_file():
        return _of_file(path)
    paths = path.rglob("*") if path.is_dir() else Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    parts = [f"{inner.relative_to(path.parent)} {_of_file(inner)}" for inner in sorted(paths) if inner.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _of_file(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}" if status.st_size > _LARGE else digest(path)


@cache
def code_version() -> str:
    """Return a digest of the sources that a run depends on, and of the versions of the libraries."""
    package = Path(__file__).parents[1]
    files = [path for path in sorted(package.rglob("*.py")) if path.relative_to(package).parts[0] not in NOT_OF_A_RUN]
    parts = [str(path.relative_to(package)).encode() + path.read_bytes() for path in files]
    libraries = [f"{name} {version(name)}".encode() for name in _LIBRARIES]
    return hashlib.sha256(b"\0".join([*parts, *libraries])).hexdigest()


def state_of(folder: Path, identity: Mapping[str, Any]) -> CellState:
    """Return whether a cell has to be run, and how."""
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text("utf-8"))
        stored: dict[str, Any] = marker["identity"]
    except (OSError, ValueError, KeyError, TypeError):
        return CellState("anew", "the folder holds a run of no sweep") if run_files(folder) else CellState("start")
    reason = _difference(stored, identity)
    if reason:
        return CellState("anew", reason)
    if marker.get("finished"):
        return CellState("finished")
    return CellState("resume" if any(checkpoint_folder(folder).glob("*.ckpt")) else "start")


def _difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Return the first difference between two identities; empty if there is none."""
    old, new = stored.get("settings", {}), current["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key} was {shown(old.get(key))} and is {shown(new.get(key))}"
    old, new = stored.get("files", {}), current["files"]
    changed = next((path for path in sorted(old.keys() | new.keys()) if old.get(path) != new.get(path)), None)
    if changed is not None:
        return f"the content of {changed} has changed"
    return "" if stored.get("code") == current["code"] else "lit_align or a library has changed since"


def begin_cell(folder: Path, identity: Mapping[str, Any], moves_aside: bool) -> None:
    """Note what a cell is started with.

    Args:
        folder: of the cell.
        identity: of the cell.
        moves_aside: whether to move aside what an earlier run has left, which this one does not go on from. That
            happens first: a checkpoint of other settings or code must never lie under the new note.
    """
    if moves_aside and run_files(folder):
        move_aside(folder, run_files(folder))
    write_whole(folder / MARKER, json.dumps({"finished": False, "identity": identity}, indent=2))


def finish_cell(folder: Path, identity: Mapping[str, Any], seconds: float) -> None:
    """Note that a cell has finished."""
    content = {"finished": True, "seconds": round(seconds, 1), "identity": identity}
    write_whole(folder / MARKER, json.dumps(content, indent=2))
