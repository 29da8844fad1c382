"""The command line's parser: strict, safe, and brief when something is wrong.

jsonargparse and LightningCLI are kept as they are but for what would mislead a user: abbreviated options, settings
that leak from one class into the next, imports that a configuration file should not be able to ask for, and forty
lines of usage before each error.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import jsonargparse
import jsonargparse._actions as jsonargparse_actions
import jsonargparse._typehints as typehints
import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader, yaml_load
from lightning.pytorch.cli import LightningArgumentParser

from lit_align.cli.error_messages import in_short
from lit_align.cli.objective_names import PACKAGES, advice, presets_of
from lit_align.errors import printable
from lit_align.files import at_home

ALLOWED = ["lit_align", "lightning.pytorch", "torch.optim"]
LARGEST_CONFIG = 1_000_000
MOST_IN_CONFIG = ((50, "aliases"), (50_000, "values"), (50, "levels"))


class Parser(LightningArgumentParser):
    """Takes no abbreviations, keeps usage to a line, and answers a misspelt key with the nearest ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("prog", "python -m lit_align")
        super().__init__(*args, **kwargs)

    def format_usage(self) -> str:
        """One line."""
        return f"usage: {self.prog.replace(' [options]', '')} [--config FILE] [--key value ...]\n"

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        """As jsonargparse does it, and of a preset, which is a function, its own arguments."""
        if not inspect.isfunction(class_type):
            added: list[str] = super().add_class_arguments(class_type, nested_key, **kwargs)
            return added
        kwargs.pop("instantiate", None)
        return list(self.add_function_arguments(class_type, nested_key, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message in short, with suggestions, and leave with code 2; the parser of a part raises it."""
        missing = re.match(r"the following arguments are required: (\w+)\.", message)
        if missing and missing[1] in self._parsers_of_commands():
            self._parsers_of_commands()[missing[1]].error(re.sub(rf"\b{missing[1]}\.", "", message), ex)
        told, close = message, ""
        if self.exit_on_error:
            told, close = advice(message, in_short(message), task_in(sys.argv))
        super().error(printable(told + ("" if "id you mean" in told else close or self._suggestions(message))), ex)

    def _parsers_of_commands(self) -> dict[str, Any]:
        return dict(self._subcommands_action._name_parser_map) if self._subcommands_action else {}

    def _suggestions(self, message: str) -> str:
        key = re.search(
            r"(?:[Uu]nrecognized arguments: --|does not accept option '|Option '|[Kk]ey ')([\w.]+)", message
        )
        if key is None:
            return ""
        parsers = [self, *self._parsers_of_commands().values()]
        known = sorted({action.dest for parser in parsers for action in parser._actions if action.dest})
        close = difflib.get_close_matches(key[1].removeprefix(f"{self.prog.split()[-1]}."), known, 3, 0.7)
        return f"\nDid you mean: {', '.join(close)}?" if close else ""


def extensions_in(argv: Sequence[str]) -> list[str]:
    """The folders and modules behind ``--extend`` on a command line.

    >>> extensions_in(["fit", "--extend", "./parts,mine", "--run", "x"])
    ['./parts', 'mine']
    """
    for place, word in enumerate(argv):
        if word == "--extend" and place + 1 < len(argv):
            return argv[place + 1].split(",")
        if word.startswith("--extend="):
            return word.removeprefix("--extend=").split(",")
    return []


def task_in(argv: Sequence[str]) -> str:
    """The task that a command line asks for, itself or in a configuration; the last word counts.

    >>> task_in(["fit", "--config", "none.yaml", "--task", "reward"]), task_in(["fit"])
    ('reward', 'preference')
    """
    found = "preference"
    for word, value in zip(argv, [*argv[1:], ""], strict=True):
        key, equals, rest = word.partition("=")
        value = rest if equals else value
        if key == "--task":
            found = value
        elif key in ("--config", "-c"):
            found = _task_of(value) or found
    return found


def _task_of(config: str) -> str | None:
    """The task in a configuration; None where there is none, or nothing that can be read, which is told later."""
    try:
        text = Path(config).read_text("utf-8") if "\n" not in config and Path(config).is_file() else config
        whole = load_yaml(text)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    task = whole.get("task") if isinstance(whole, dict) else None
    return task if isinstance(task, str) else None


def prepare(extensions: Sequence[str]) -> None:
    """Set jsonargparse up, once per process, before any parser is built.

    Args:
        extensions: folders, or importable modules and packages, whose classes a configuration may name. They are
            imported here: this is where the user's word that the code is trusted takes effect.

    Raises:
        ValueError: an extension is neither a folder nor importable.
    """
    allowed = [*ALLOWED, *(name for extension in extensions for name in _load_extension(extension))]
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    jsonargparse.set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    for name in ("score", "tastes"):
        importlib.import_module(f"lit_align.testbed.{name}")
    typehints.discard_init_args_on_class_path_change = _discard_settings_of_previous_class
    typehints.resolve_class_path_by_name = _resolve_name
    typehints.is_pathlike = _is_no_configuration
    _HELP.resolve_help_type = _resolve_help


def _load_extension(extension: str) -> list[str]:
    folder = at_home(extension)
    if folder.is_dir():
        sys.path.insert(0, str(folder.resolve()))
        names = sorted(
            {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
        )
    else:
        names = [extension]
    for name in names:
        try:
            importlib.import_module(name)
        except (ModuleNotFoundError, TypeError) as error:  # a TypeError for "./x", which Python takes as relative
            if name.startswith(".") or getattr(error, "name", None) == name:
                message = f"--extend {extension}: neither a folder nor a module that can be imported"
                raise ValueError(message) from error
            raise
    return names


def load_yaml(text: str) -> Any:
    """YAML as data: no tags that build objects, no duplicate keys, nothing that grows, at most 1 MB.

    >>> load_yaml("{lr: 1e-4}")
    {'lr': 0.0001}
    >>> load_yaml("{beta: 1, beta: 2}")
    Traceback (most recent call last):
    yaml.constructor.ConstructorError: duplicate key 'beta' ...
    """
    if len(text) > LARGEST_CONFIG:
        raise yaml.YAMLError(f"{len(text)} characters of YAML; expected at most {LARGEST_CONFIG}")
    loader = get_yaml_default_loader()
    _refuse_bombs(yaml.parse(text, Loader=loader))
    _refuse_duplicates(yaml.compose(text, Loader=loader))
    try:
        return yaml_load(text)
    except ValueError as error:  # of a number with thousands of digits
        raise yaml.YAMLError(str(error)) from error


def _refuse_bombs(events: Iterable[yaml.Event]) -> None:
    """Raise as soon as there are too many aliases, values (aliases written out) or levels."""
    aliases, written_out = 0, {}
    levels: list[tuple[str | None, int]] = [(None, 0)]
    for event in events:
        values = int(isinstance(event, yaml.ScalarEvent))
        if isinstance(event, yaml.CollectionStartEvent):
            levels.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, values = levels.pop()
            written_out[anchor] = values
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            values = written_out.get(event.anchor, 1)
            if any(anchor == event.anchor for anchor, _ in levels):
                raise yaml.YAMLError(f"*{event.anchor} in the YAML stands inside of what it stands for")
        levels[-1] = levels[-1][0], levels[-1][1] + values
        found = (aliases, sum(count for _, count in levels), len(levels) - 1)
        for count, (most, what) in zip(found, MOST_IN_CONFIG, strict=True):
            if count > most:
                raise yaml.YAMLError(f"more than {most} {what} in the YAML")


def _refuse_duplicates(node: yaml.Node | None) -> None:
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
        _refuse_duplicates(child)


_discard: Any = typehints.discard_init_args_on_class_path_change
_resolve: Any = typehints.resolve_class_path_by_name
_is_pathlike: Any = typehints.is_pathlike
_HELP: Any = jsonargparse_actions._ActionHelpClassPath
_help: Any = _HELP.resolve_help_type


def _discard_settings_of_previous_class(parser_or_action: Any, prev_val: Any, value: Any) -> None:
    """A new part starts from its own defaults: ``beta`` of the part it replaces does not carry over."""
    if prev_val and "init_args" in prev_val and prev_val["class_path"] != value["class_path"]:
        previous = typehints.subclass_spec_as_namespace(prev_val)
        if _is_ours(value["class_path"]) or _is_ours(previous["class_path"]):
            for key in {key.split(".")[0] for key in previous.init_args.keys(branches=True)}:
                previous.init_args.pop(key)
            return
    _discard(parser_or_action, prev_val, value)


def _is_no_configuration(typehint: Any) -> bool:
    """Text is taken as it is, also where a file has that name: data must not be read as settings."""
    return bool(_is_pathlike(typehint)) or typehint is str or str in get_args(typehint)


def _is_ours(class_path: str) -> bool:
    return not class_path.startswith(("lightning.", "torch."))


def _resolve_name(cls: Any, name: str) -> str:
    """Short names also find the presets, which are functions."""
    path: str = _resolve(cls, name)
    for package, base in PACKAGES.values():
        if "." not in path and cls is base and path in package.__all__:
            return f"{package.__name__}.{path}"
    return path


def _resolve_help(action: Any, value: str | None, option: str) -> Any:
    """Presets have help as classes have."""
    for task, (package, base) in PACKAGES.items():
        name = (value or "").removeprefix(f"{package.__name__}.")
        if base in action._help_types and name in presets_of(task):
            return getattr(package, name)
    return _help(action, value, option)
