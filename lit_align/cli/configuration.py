"""Configurations before they are parsed: YAML that is read as plain data, and settings that parsing depends on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_align.cli.keys import MODULES
from lit_align.compat.jsonargparse import read_yaml, yaml_loader
from lit_align.errors import shown

MAX_YAML_CHARACTERS = 1_000_000
LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
NUMBER = re.compile(r"[-+]?[0-9][0-9_.:]*")
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_IN_YAML = ((50, "aliases"), (50_000, "values"), (50, "levels"))


def read_extensions(arguments: Sequence[str]) -> list[str]:
    """Return the folders and modules that ``--extend`` names on a command line.

    >>> read_extensions(["fit", "--extend", "./parts,mine", "--run", "x"])
    ['./parts', 'mine']
    """
    extend = dict(_options(arguments)).get("--extend")
    return extend.split(",") if extend else []


def read_task(arguments: Sequence[str]) -> str:
    """Return the task of a command line, which it names itself or in a configuration; the last mention counts.

    It is needed before parsing: the keys of ``model`` depend on it.

    Raises:
        ValueError: there is no such task.

    >>> read_task(["fit", "--config", "none.yaml", "--task", "reward"]), read_task(["fit"])
    ('reward', 'preference')
    """
    task = "preference"
    for option, value in _options(arguments):
        if option == "--task":
            task = value or task
        elif option == "--config":
            task = _task_in_configuration(value or "") or task
    if task not in MODULES:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(MODULES)}")
    return task


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a command line with their dashes, and the value of each, None where there is none."""
    for word, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, equals, text = word.partition("=")
        if option.startswith("--") or option == "-c":
            value = text if equals else None if following.startswith("--") else following
            yield "--config" if option == "-c" else option, value


def _task_in_configuration(config: str) -> str | None:
    """Return the task in a configuration; None if it has none or cannot be read, which parsing reports later."""
    try:
        text = Path(config).read_text("utf-8") if "\n" not in config and Path(config).is_file() else config
        settings = load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    task = settings.get("task") if isinstance(settings, dict) else None
    return task if isinstance(task, str) else None


@dataclass(frozen=True)
class Setting:
    """A key with its value, and where both stand.

    Args:
        key: dotted.
        value: read as YAML.
        text: as it stands on the command line; None in a file.
        file: that it stands in; empty for the command line.
    """

    key: str
    value: Any
    text: str | None = None
    file: str = ""


def read_settings(arguments: Sequence[str]) -> Iterator[Setting]:
    """Yield the settings of a command line in its order, those of its files where these stand.

    Raises:
        ValueError: a file cannot be read; names it.
    """
    for option, value in _options(arguments):
        key = option.removeprefix("--").removesuffix("+")
        if key == "config":
            settings, file = read_configuration(value or "")
            yield from (Setting(str(name), inner, file=file) for name, inner in settings.items())
        elif value is not None and key not in ("help", "print_config"):
            yield Setting(key, _read_value(value), value)


def _read_value(text: str) -> Any:
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError):
        return text


def read_configuration(config: str) -> tuple[dict[Any, Any], str]:
    """Read a configuration, and return its settings and its name, which is empty for YAML on the command line.

    Args:
        config: path of a file, or YAML.

    Raises:
        ValueError: it cannot be read, or holds no settings; names the file, and the line if there is one.
    """
    is_inline = "\n" in config or config.lstrip().startswith("{")
    name = "--config" if is_inline else config
    try:
        text = config if is_inline else Path(config).read_text("utf-8")
        settings = load_yaml(text)
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        raise ValueError(f"{name}:{line}: not UTF-8: {error.reason}; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"--config {config}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ValueError(_yaml_problem(name, error)) from None
    if settings is None:
        raise ValueError(f"{name} is empty; expected keys, such as model, data and trainer")
    if not isinstance(settings, dict):
        content = "a list" if isinstance(settings, list) else shown(settings)
        raise ValueError(f"{name} holds {content}; expected keys, such as model, data and trainer")
    return settings, "" if is_inline else name


def _yaml_problem(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark is not None else name
    return f"{where}: not plain YAML: {getattr(error, 'problem', None) or error}"


def load_yaml(text: str) -> Any:
    """Read YAML as data: no tags that build objects, no duplicate keys, no exponential growth, at most 1 MB.

    Numbers with leading zeros, which YAML reads as octal, and with colons, which it reads to the base 60, are refused.

    >>> load_yaml("{lr: 1e-4}")
    {'lr': 0.0001}
    >>> load_yaml("{beta: 1, beta: 2}")
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: duplicate key 'beta' ...
    >>> load_yaml("{max_steps: 010}")
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: 010 would be read as 8, to the base 8; write 8, 10 or '010' ...
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise yaml.YAMLError(f"{len(text)} characters of YAML; expected at most {MAX_YAML_CHARACTERS}")
    _check_size(yaml.parse(text, Loader=yaml_loader()))
    _check_nodes(yaml.compose(text, Loader=yaml_loader()))
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


def _check_nodes(node: yaml.Node | None) -> None:
    """Raise for keys that stand twice, and for numbers that YAML reads as others than they look like."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.ScalarNode):
        _check_number(node)
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
        _check_nodes(child)


def check_numbers(arguments: Sequence[str], texts: Collection[str]) -> None:
    """Raise for a number on the command line that ``load_yaml`` would refuse in a file.

    Raises:
        ValueError: names the option.

    >>> check_numbers(["fit", "--run", "010", "--trainer.max_steps=010"], {"run"})
    Traceback (most recent call last):
    ValueError: --trainer.max_steps: 010 would be read as 8, to the base 8; write 8, 10 or '010'
    """
    for option, value in _options(arguments):
        if value is not None and option.removeprefix("--") not in texts and NUMBER.fullmatch(value):
            try:
                _check_nodes(yaml.compose(value, Loader=yaml_loader()))
            except yaml.constructor.ConstructorError as error:
                raise ValueError(f"{option}: {error.problem}") from None


def _check_number(node: yaml.ScalarNode) -> None:
    """Raise for a number without quotes that has a leading zero or a colon."""
    base = 8 if LEADING_ZERO.fullmatch(node.value) else 60 if ":" in node.value else 10
    if node.style or node.tag not in NUMBER_TAGS or base == 10:
        return
    value = read_yaml(node.value)
    others = [str(value), *([str(int(node.value.replace("_", "")))] if base == 8 else [])]
    message = f"{node.value} would be read as {value}, to the base {base}; write {', '.join(others)} or '{node.value}'"
    raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
