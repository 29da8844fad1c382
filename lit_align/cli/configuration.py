"""Configurations before they are parsed: YAML that is read as plain data, and settings that parsing depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_align.compat.jsonargparse import read_yaml, yaml_loader

MAX_YAML_CHARACTERS = 1_000_000
MAX_IN_YAML = ((50, "aliases"), (50_000, "values"), (50, "levels"))


def read_extensions(arguments: Sequence[str]) -> list[str]:
    """Return the folders and modules that ``--extend`` names on a command line.

    >>> read_extensions(["fit", "--extend", "./parts,mine", "--run", "x"])
    ['./parts', 'mine']
    """
    for place, word in enumerate(arguments):
        if word == "--extend" and place + 1 < len(arguments):
            return arguments[place + 1].split(",")
        if word.startswith("--extend="):
            return word.removeprefix("--extend=").split(",")
    return []


def read_task(arguments: Sequence[str]) -> str:
    """Return the task of a command line, which it names itself or in a configuration; the last mention counts.

    It is needed before parsing: the keys of ``model`` depend on it.

    >>> read_task(["fit", "--config", "none.yaml", "--task", "reward"]), read_task(["fit"])
    ('reward', 'preference')
    """
    task = "preference"
    for word, value in zip(arguments, [*arguments[1:], ""], strict=True):
        key, equals, rest = word.partition("=")
        value = rest if equals else value
        if key == "--task":
            task = value
        elif key in ("--config", "-c"):
            task = _task_in_configuration(value) or task
    return task


def _task_in_configuration(config: str) -> str | None:
    """Return the task in a configuration; None if it has none or cannot be read, which parsing reports later."""
    try:
        text = Path(config).read_text("utf-8") if "\n" not in config and Path(config).is_file() else config
        settings = load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    task = settings.get("task") if isinstance(settings, dict) else None
    return task if isinstance(task, str) else None


def load_yaml(text: str) -> Any:
    """Read YAML as data: no tags that build objects, no duplicate keys, no exponential growth, at most 1 MB.

    >>> load_yaml("{lr: 1e-4}")
    {'lr': 0.0001}
    >>> load_yaml("{beta: 1, beta: 2}")
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: duplicate key 'beta' ...
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters of YAML; expected at most {MAX_YAML_CHARACTERS}")
    _check_size(yaml.parse(text, Loader=yaml_loader()))
    _check_duplicates(yaml.compose(text, Loader=yaml_loader()))
    try:
        return read_yaml(text)
    except ValueError as error:  # of a number with thousands of digits
        raise yaml.YAMLError(str(error)) from error


def _check_size(events: Iterable[yaml.Event]) -> None:
    """Raise as soon as there are too many aliases, values (with aliases expanded) or levels."""
    aliases, expanded = 0, {}
    levels: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        values = int(isinstance(event, yaml.ScalarEvent))
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = levels.pop()
            expanded[anchor] = values
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            values = expanded.get(event.anchor, 1)
            if any(anchor == event.anchor for anchor, _ in levels):
                raise yaml.YAMLError(f"*{event.anchor} in the YAML stands inside of what it stands for")
        levels[-1] = levels[-1][0], levels[-1][1] + values
        counts = (aliases, sum(count for _, count in levels), len(levels) - 1)
        for count, (limit, what) in zip(counts, MAX_IN_YAML, strict=True):
            if count > limit:
                raise yaml.YAMLError(f"more than {limit} {what} in the YAML")


def _check_duplicates(node: yaml.Node | None) -> None:
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    where = key.start_mark
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", where)
                seen.add(key.value)
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    for child in children:
        _check_duplicates(child)
