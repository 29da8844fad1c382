"""The names that ``model.objective`` accepts for each task, for help texts and for suggestions in error messages."""

from __future__ import annotations

import difflib
import re
from types import ModuleType
from typing import Any

from lit_align import objectives, online
from lit_align.objectives.base import Objective
from lit_align.online.objective import OnlineObjective

PACKAGES: dict[str, tuple[ModuleType, type]] = {
    "preference": (objectives, Objective),
    "online": (online, OnlineObjective),
}
"""Task → the package of its objectives, and their base class."""
_UNKNOWN_NAME = re.compile(
    r"(?:dot import path string: '?|Import path (?=\S+ does not correspond)|Unable to load config [\"'])"
    r"(?P<name>[\w.]+)"
)


def presets_of(task: str) -> dict[str, Any]:
    """Return the presets of a task by name; empty for a task with a fixed objective.

    >>> list(presets_of("online"))
    ['conditional_pm_rlhf', 'kl_rlhf', 'pm_rlhf']
    """
    if task not in PACKAGES:
        return {}
    package, _ = PACKAGES[task]
    exported = {name: getattr(package, name) for name in package.__all__}
    return {name: part for name, part in exported.items() if f"{package.__name__}.presets" in part.__module__}


def help_on_presets(task: str) -> str:
    """Return the sentence on presets that the help of ``model.objective`` ends with."""
    where = ", explained in docs/catalogue.md" if task == "preference" else ""
    return f" Presets{where}: {', '.join(presets_of(task))}." if presets_of(task) else ""


def suggest_objectives(message: str, short: str, task: str) -> tuple[str, str]:
    """Suggest what to write instead of an unknown objective, or part of one.

    Args:
        message: jsonargparse's message.
        short: the shortened message; its first word is the key.
        task: of the run.

    Returns:
        The message to show instead of ``short``, and a line of suggestions, which may be empty.
    """
    unknown, key = _UNKNOWN_NAME.search(message), short.split(" ")[0].strip("-:").removesuffix(".help")
    if unknown is None or "objective" not in key:
        return short, ""
    name = unknown["name"].rpartition(".")[2]
    is_objective = key.endswith("objective")
    for other in PACKAGES:
        if is_objective and other != task and name in _objectives_of(other):
            return f"{key} is {name!r}, an objective of task {other}, and the task is {task}; add --task {other}", ""
    package, _ = PACKAGES.get(task, PACKAGES["preference"])
    known = _objectives_of(task) if is_objective and task in PACKAGES else package.__all__
    close = difflib.get_close_matches(name, [candidate for candidate in known if candidate != name], 3, 0.6)
    return short, f"\nDid you mean: {', '.join(close)}?" if close else ""


def _objectives_of(task: str) -> list[str]:
    """Return the names of a task's presets and of its concrete objective classes."""
    package, base = PACKAGES[task]
    exported = {name: getattr(package, name) for name in package.__all__}
    classes = [name for name, part in exported.items() if isinstance(part, type) and issubclass(part, base)]
    return [*presets_of(task), *(name for name in classes if exported[name] is not base)]
