"""Checks of a command line before anything is imported: keys, names, values, settings, the objective's numbers, files.

Nothing is refused here that a run would accept: what cannot be told from source, arguments and names is left to it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lit_align.cli.annotations import Kind, constant, kinds
from lit_align.cli.configuration import Setting, read_extensions, read_settings, read_task
from lit_align.cli.keys import KeyTable, bases_of, choices_of, default_class, keys_of, options_of
from lit_align.cli.settings import ALLOWED_IMPORTS, DEBUG, RENAMED_KEYS, check_settings
from lit_align.cli.signatures import Definition, Parameter, modules_of, source_text
from lit_align.cli.suggestions import did_you_mean, near, suggest_key, suggest_name
from lit_align.errors import check_range, data_not_found, shown
from lit_align.files import at_home
from lit_align.locate import locate_model, locate_tokenizer

_RANGE = re.compile(r'check_range\("(data\.\w+)", \w+, (\d+)(?:, (\d+))?\)')
_SCALARS = ("int", "float", "bool", "str", "None", "Literal")
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
_CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")
_TABLE = re.compile(r"[^*?\[\]:]+\.(jsonl?|[ct]sv|parquet)(\.(gz|bz2|xz|zst))?", re.IGNORECASE)
"""Sources that can be nothing but a file: no part of the testbed, no pattern, no name on a hub."""
SPLITS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}
"""Command → the splits that it reads; see `lit_align.data.datamodule.STAGES`."""
_MATHEMATICS = ("lit_align.objectives", "lit_align.online")
"""Packages whose parts are built here: they import nothing but torch."""


@dataclass
class ChosenClass:
    """The class or preset of a key, and its options so far; None for a class that is not known."""

    definition: Definition | None
    options: dict[str, Any] = field(default_factory=dict)


class UnjudgedError(Exception):
    """Raised for what cannot be built here."""


def check_command_line(arguments: Sequence[str], reads_files: bool = True) -> list[str]:
    """Return the mistakes of a command line and of its files, one sentence each.

    Args:
        arguments: command, keys and values.
        reads_files: whether the data and the policy must exist.
    """
    if DEBUG in os.environ or any(word.partition("=")[0].endswith(".help") for word in arguments):
        return []
    try:
        checker = _checker(arguments)
    except ValueError as error:
        return [str(error)]
    try:
        for setting in read_settings(arguments):
            checker.read(setting)
    except ValueError as error:
        return [*checker.mistakes, str(error)]
    mistakes = checker.mistakes or checker.missing() or checker.check_values(arguments[0])
    return mistakes or (checker.check_files(arguments[0]) if reads_files else [])


def _checker(arguments: Sequence[str]) -> Checker:
    task = read_task(arguments)
    return Checker(keys_of(arguments[0], task), task, extended=bool(read_extensions(arguments)))


def build_objective(arguments: Sequence[str]) -> Any:
    """Return the objective of a command line without mistakes; None if it cannot be built before a run."""
    checker = _checker(arguments)
    for setting in read_settings(arguments):
        checker.read(setting)
    try:
        return checker.build("model.objective") if "model.objective" in checker.choices else None
    except UnjudgedError:
        return None


class Checker:
    """Compares settings with the keys of a command and collects the mistakes.

    Args:
        keys: of the command.
        task: of the run.
        extended: whether the command line names code of the user's own, whose classes are not known here.
    """

    def __init__(self, keys: KeyTable, task: str, extended: bool) -> None:
        self.keys, self.task, self.extended = keys, task, extended
        self.mistakes: list[str] = []
        self.values: dict[str, Any] = {}
        self.choices: dict[str, ChosenClass] = {}
        self._files: dict[str, str] = {}
        self._unjudged: list[str] = []
        self._file = ""

    def read(self, setting: Setting) -> None:
        """Check a setting, and keep it for the checks of values."""
        self._file = f"{setting.file}: " if setting.file else ""
        self._read(setting.key, setting.value, setting.text)

    def _mistake(self, sentence: str) -> None:
        self.mistakes.append(f"{self._file}{sentence}")

    def _read(self, key: str, value: Any, text: str | None) -> None:
        owner = next((leaf for leaf in _parents(key) if leaf in self.keys.leaves), None)
        if key in self.keys.groups:
            if isinstance(value, dict):
                for name, inner in value.items():
                    self._read(f"{key}.{name}", inner, None)
            else:  # a file with the keys of the group
                self._unjudged.append(key)
        elif key in self.keys.leaves:
            self._read_leaf(key, self.keys.leaves[key], value, text)
        elif owner is not None:
            self._read_option(owner, self.keys.leaves[owner], key.removeprefix(f"{owner}."), value, text)
        else:
            new_name = RENAMED_KEYS.get(key)
            chosen = {name: choice.definition for name, choice in self.choices.items()}
            hint = f"; the key has a new name: {new_name}" if new_name else suggest_key(key, self.keys, chosen)
            self._mistake(f"{key}: no such key{hint}")

    def _read_leaf(self, key: str, parameter: Parameter, value: Any, text: str | None) -> None:
        self.values[key] = value
        self._files[key] = self._file
        types = kinds(parameter.module, parameter.annotation)
        if problem := _problem(types, value, text):
            self._mistake(f"{key} is {shown(value if text is None else text)}; expected {problem}")
        elif isinstance(value, str) and _names_class(types):
            self._choose(key, parameter, value)
        elif isinstance(value, dict) and bases_of(parameter):
            self._read_class(key, parameter, value)
        elif isinstance(value, bool | int | float | list) and self._is_closed(parameter):
            hint = " (yes, no, on and off are truth values in YAML)" if isinstance(value, bool) else ""
            self._mistake(f"{key} is {shown(value)}{hint}; expected the name of a class, or class_path and init_args")

    def _read_class(self, key: str, parameter: Parameter, value: dict[Any, Any]) -> None:
        """Read ``{class_path, init_args}``, or the options alone."""
        if isinstance(value.get("class_path"), str):
            self._choose(key, parameter, value["class_path"])
        inner = value.get("init_args", {}) if "class_path" in value or "init_args" in value else value
        for name, option in inner.items() if isinstance(inner, dict) else ():
            self._read_option(key, parameter, str(name), option, None)

    def _choose(self, key: str, parameter: Parameter, name: str) -> None:
        """Read the name of a class, a preset or a function."""
        choices = [choices_of(base) for base in bases_of(parameter)]
        short = name.rpartition(".")[2]
        definition = next((known[short] for known in choices if short in known), None)
        if "." in name and not name.startswith(ALLOWED_IMPORTS):
            definition = None
            self._check_import(key, name)
        elif "." not in name and definition is None and self._is_closed(parameter) and not Path(name).exists():
            self._mistake(f"{key} is {shown(name)}{suggest_name(key, name, parameter, self.task)}")
        self._put(key, ChosenClass(definition))

    def _put(self, key: str, choice: ChosenClass) -> None:
        """Set the class of a key; an option of the same class stays, as the parser keeps it."""
        before = self.choices.get(key)
        if before is None or before.definition != choice.definition:
            for stale in [name for name in (*self.choices, *self.values) if name.startswith(f"{key}.")]:
                self.choices.pop(stale, None)
                self.values.pop(stale, None)
            self.choices[key] = choice

    def _is_closed(self, parameter: Parameter) -> bool:
        """Return whether every class that a parameter may have is known."""
        bases = bases_of(parameter)
        types = kinds(parameter.module, parameter.annotation)
        others = [kind for kind in types if kind.definition is None and kind.name != "None"]
        own = all(base.module.startswith("lit_align") for base in bases)
        return bool(bases) and own and not others and not self.extended

    def _check_import(self, key: str, name: str) -> None:
        if not self.extended and not Path(name).exists():
            self._mistake(
                f"{key}: importing {shown(name)} is not allowed; code of your own is named on the command line: "
                f"--extend {name.partition('.')[0]}"
            )

    def _read_option(self, key: str, parameter: Parameter, option: str, value: Any, text: str | None) -> None:
        """Read an option of the class that stands at a key."""
        name, _, deeper = option.removeprefix("init_args.").partition(".")
        if name == "class_path" and isinstance(value, str):
            self._choose(key, parameter, value)
        if name in _CLASS_KEYS:
            return
        if key not in self.choices:
            self._put(key, ChosenClass(default_class(parameter)))
        choice = self.choices[key]
        options = options_of(choice.definition) if choice.definition is not None else None
        if choice.definition is None or options is None:
            return
        if name not in options:
            close = ["lr"] if name == "learning_rate" and "lr" in options else near(name, options)
            meant = did_you_mean(close) or f"; it has {', '.join(sorted(options)) or 'none'}"
            self._mistake(f"{key}.{name}: {choice.definition.name} has no such option{meant}")
        elif deeper:
            self._read_option(f"{key}.{name}", options[name], deeper, value, text)
        else:
            self._read_leaf(f"{key}.{name}", options[name], value, text)

    def missing(self) -> list[str]:
        """Return a sentence on the required keys that are not set, in a list that is empty if all are."""
        required = (key for key, parameter in self.keys.leaves.items() if parameter.default is None)
        judged = (key for key in required if not any(key.startswith(f"{group}.") for group in self._unjudged))
        names = [key for key in judged if key not in self.values and key not in self.choices]
        return [f"the following arguments are required: {', '.join(names)}"] if names else []

    # ── values ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_values(self, command: str) -> list[str]:
        """Return what is wrong about settings of the run, and about the numbers of the objective."""
        try:
            for key, low, high in stated_ranges():
                value = self.values.get(key)
                if isinstance(value, int | float):
                    check_range(key, value, low, high)
            if not self._unjudged:
                check_settings(self._namespace(), command)
            if "model.objective" in self.choices and not self.extended:
                self.build("model.objective")
        except UnjudgedError:
            return []
        except ValueError as error:
            return [str(error)]
        return []

    def check_files(self, command: str) -> list[str]:
        """Return what is missing of the policy, the tokenizer and the files of data, as a run would say it."""
        checks = [(f"data.{split}", _check_source) for split in SPLITS[command]]
        mistakes = []
        for key, check in (*checks, ("model.policy", locate_model), ("data.tokenizer", locate_tokenizer)):
            names = self.values.get(key)
            for name in names if isinstance(names, list) else [names]:
                try:
                    if isinstance(name, str):
                        check(name)
                except (FileNotFoundError, ValueError) as error:
                    mistakes.append(f"{self._files[key]}{key}: {error}")
                except OSError:
                    continue  # the run will say why it cannot be looked at
        return mistakes

    def _namespace(self) -> Namespace:
        """Return the settings of the run with their defaults, as the parser would."""
        config = Namespace()
        for key, parameter in self.keys.leaves.items():
            try:
                value = self.values.get(key, None if parameter.default is None else constant(parameter))
                has_options = any(name.startswith(f"{key}.") for name in self.values)
                config[key] = Namespace() if value is None and has_options else value  # such as `--model.lora.rank 8`
            except (ValueError, TypeError):
                config[key] = None
        return config

    def build(self, key: str) -> Any:
        """Build the class or preset at a key.

        Raises:
            UnjudgedError: a part of it is not known here, or is not of the mathematics.
            ValueError: a number is out of range; the constructor's own message.
        """
        choice = self.choices[key]
        if choice.definition is None or not choice.definition.module.startswith(_MATHEMATICS):
            raise UnjudgedError
        options = options_of(choice.definition) or {}
        settings = {}
        for name, parameter in options.items():
            inner = f"{key}.{name}"
            if inner in self.choices:
                settings[name] = self.build(inner)
            elif inner in self.values:
                settings[name] = _as_argument(kinds(parameter.module, parameter.annotation), self.values[inner])
            elif parameter.default is None:
                raise UnjudgedError
        make = getattr(import_module(choice.definition.module), choice.definition.name)
        try:
            return make(**settings)
        except ValueError as error:
            files = dict.fromkeys(filter(None, (self._files.get(f"{key}.{name}") for name in settings)))
            raise ValueError(f"{''.join(files)}{error}") from None
        except (TypeError, AttributeError):
            raise UnjudgedError from None


def _check_source(source: str) -> None:
    if _TABLE.fullmatch(source) and not at_home(source).exists():
        raise FileNotFoundError(data_not_found(source))


@cache
def stated_ranges() -> tuple[tuple[str, float, float], ...]:
    """Return key, smallest and largest value of the numbers that the data's constructors check by ``check_range``."""
    matches = (match for module in modules_of("lit_align.data") for match in _RANGE.findall(source_text(module)))
    return tuple((key, int(low), int(high) if high else math.inf) for key, low, high in matches)


def _parents(key: str) -> Iterator[str]:
    """Yield the keys that hold a key, the innermost first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _names_class(types: Sequence[Kind]) -> bool:
    """Return whether text for a parameter is the name of a class or of a function."""
    is_class = any(kind.definition is not None or kind.name.startswith("Callable") for kind in types)
    return is_class and all(kind.name != "str" for kind in types)


def _problem(types: Sequence[Kind], value: Any, text: str | None) -> str:
    """Return what was expected in place of a value; empty if it fits, or if a type is not a simple one."""
    if any(kind.name not in _SCALARS for kind in types) or any(_fits(kind, value, text) for kind in types):
        return ""
    literals = [f"one of {', '.join(map(repr, kind.choices))}" for kind in types if kind.name == "Literal"]
    words = [_WORDS[kind.name] for kind in types if kind.name in _WORDS and kind.name != "None"]
    return " or ".join([*literals, *words])


def _fits(kind: Kind, value: Any, text: str | None) -> bool:
    match kind.name:
        case "int":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "float":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "str":
            return text is not None or not isinstance(value, bool | dict | list)
        case "bool":
            return isinstance(value, bool) or str(value).lower() in ("true", "false", "yes", "no")
        case "Literal":
            return value in kind.choices or text in kind.choices
    return value is None


def _as_argument(types: Sequence[Kind], value: Any) -> Any:
    """Return a value as the parser would give it to a constructor.

    Raises:
        UnjudgedError: it holds classes.
    """
    if isinstance(value, dict | list):
        raise UnjudgedError
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and [kind.name for kind in types] == ["float"] else value
