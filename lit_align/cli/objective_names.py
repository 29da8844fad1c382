"""The names that ``model.objective`` takes, by task: told in the help, and where another task's name is given."""

from __future__ import annotations

import argparse
import difflib
import re
from types import ModuleType

from lit_align import objectives, online
from lit_align.objectives.base import Objective
from lit_align.online.objective import OnlineObjective

PACKAGES: dict[str, tuple[ModuleType, type]] = {
    "preference": (objectives, Objective),
    "online": (online, OnlineObjective),
}
"""Task → the package of its objectives, and what they are."""
EXPLAINED = {"preference": ", explained in docs/catalogue.md"}
_ASKED = re.compile(
    r"(?:dot import path string: '?|Import path (?=\S+ does not correspond)|Unable to load config [\"'])"
    r"(?P<name>[\w.]+)"
)


def presets_of(task: str) -> list[str]:
    """The published names among the objectives of a task; none where it takes no other than its own.

    >>> presets_of("online")
    ['conditional_pm_rlhf', 'kl_rlhf', 'pm_rlhf']
    """
    if task not in PACKAGES:
        return []
    package, _ = PACKAGES[task]
    return [name for name in package.__all__ if f"{package.__name__}.presets" in getattr(package, name).__module__]


def name_presets(parser: argparse.ArgumentParser, task: str) -> None:
    """Add the presets of a task to the help of ``model.objective``."""
    names = ", ".join(presets_of(task))
    for action in parser._actions:
        if action.dest == "model.objective" and action.help and names:
            action.help += f" Presets{EXPLAINED.get(task, '')}: {names}."


def advice(complaint: str, told: str, task: str) -> tuple[str, str]:
    """What to do about a name that no objective or part of the run's task has.

    Args:
        complaint: as jsonargparse words it.
        told: the same in short; its first word is the key.
        task: of the run.

    Returns:
        What stands in the place of ``told``, and a line of suggestions, which may be empty.
    """
    asked, key = _ASKED.search(complaint), told.split(" ")[0].strip("-:").removesuffix(".help")
    if asked is None or "objective" not in key:
        return told, ""
    name = asked["name"].rpartition(".")[2]
    whole = key.endswith("objective")
    for other in PACKAGES:
        if whole and other != task and name in _objectives_of(other):
            said = f"{key} is {name!r}, an objective of task {other}, and the task is {task}; add --task {other}"
            return said, ""
    package, _ = PACKAGES.get(task, PACKAGES["preference"])
    known = _objectives_of(task) if whole and task in PACKAGES else package.__all__
    close = difflib.get_close_matches(name, [each for each in known if each != name], 3, 0.6)
    return told, f"\nDid you mean: {', '.join(close)}?" if close else ""


def _objectives_of(task: str) -> list[str]:
    """Presets, and the classes that are objectives but for the one that all are made of."""
    package, base = PACKAGES[task]
    things = {name: getattr(package, name) for name in package.__all__}
    classes = [name for name, one in things.items() if isinstance(one, type) and issubclass(one, base)]
    return [*presets_of(task), *(name for name in classes if things[name] is not base)]
