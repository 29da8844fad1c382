"""The command line's parser.

The parser departs from jsonargparse and LightningCLI where they would mislead a user: it takes no abbreviated options,
imports nothing that the command line does not allow, carries no settings from one class over to the next (see
``lit_align.compat.jsonargparse``), and prints an error without forty lines of usage before it.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import jsonargparse
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lit_align.cli.configuration import load_yaml
from lit_align.cli.error_messages import shorten
from lit_align.cli.keys import choices_of
from lit_align.cli.settings import ALLOWED_IMPORTS, RENAMED_KEYS
from lit_align.cli.signatures import find_definition
from lit_align.cli.suggestions import OBJECTIVES, did_you_mean, suggest_objective
from lit_align.compat.jsonargparse import options, patch, subparsers
from lit_align.errors import printable
from lit_align.extensions import trust
from lit_align.files import at_home

USER_ERRORS = (ValueError, TypeError, OSError, ImportError)
_UNKNOWN_KEY = re.compile(
    r"(?:[Uu]nrecognized arguments: --|does not accept option '|Option '|[Kk]ey ')(?P<key>[\w.]+)"
)
_MOVED_MODULE = re.compile(r"(module 'lit_align[\w.]*' has no attribute|[Nn]o module named 'lit_align)")


class Parser(LightningArgumentParser):
    """A parser without abbreviations, with one line of usage, and suggestions for misspelt keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("prog", "python -m lit_align")
        super().__init__(*args, **kwargs)

    @override
    def format_usage(self) -> str:
        return f"usage: {self.prog.replace(' [options]', '')} [--config FILE] [--key value ...]\n"

    def add_class_arguments(self, class_type: Any, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        """Add the arguments of a class, or of a function that stands for one, such as a preset."""
        if not inspect.isfunction(class_type):
            added: list[str] = super().add_class_arguments(class_type, nested_key, **kwargs)
            return added
        kwargs.pop("instantiate", None)
        return list(self.add_function_arguments(class_type, nested_key, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a shortened message with suggestions and exit with code 2; parsers of nested classes raise it."""
        missing = re.match(r"the following arguments are required: (\w+)\.", message)
        if missing and missing[1] in subparsers(self):
            subparsers(self)[missing[1]].error(re.sub(rf"\b{missing[1]}\.", "", message), ex)
        short = suggest_objective(message, shorten(message), self._task) if self.exit_on_error else message
        if new_name := _new_name(short):
            short = f"{short.partition('; did you mean')[0]}; the key has a new name: {new_name}"
        elif _MOVED_MODULE.search(short):
            short += "; modules have moved since: name the class alone, for example class_path: TestbedScore"
        elif "id you mean" not in short:
            short += self._suggest_keys(message)
        super().error(printable(short), ex)

    @property
    def _all_options(self) -> dict[str, Any]:
        """The options of this parser and of its subcommands."""
        return {
            key: option for parser in (self, *subparsers(self).values()) for key, option in options(parser).items()
        }

    @property
    def _task(self) -> str | None:
        """The task of the command line, which is the default of its option (see ``read_task``); None without one."""
        return str(self._all_options["task"].default) if "task" in self._all_options else None

    def _suggest_keys(self, message: str) -> str:
        unknown = _UNKNOWN_KEY.search(message)
        if unknown is None:
            return ""
        key = unknown["key"].removeprefix(f"{self.prog.split()[-1]}.")
        close = difflib.get_close_matches(key, sorted(self._all_options), 3, 0.7)
        return did_you_mean(close)


def _new_name(message: str) -> str:
    """Return the new name of a former key that a message is about; empty if it is about none."""
    names = (new for old, new in RENAMED_KEYS.items() if re.search(rf"(?<!\w){re.escape(old)}(?!\w)", message))
    return next(names, "")


def prepare_parsing(extensions: Sequence[str]) -> None:
    """Set up jsonargparse, once per process, before any parser is built.

    Args:
        extensions: folders, Python files, or importable modules and packages, whose classes a configuration may name.
            They are imported here: naming them on the command line is what says that their code is trusted.

    Raises:
        ValueError: an extension is neither a folder, nor a file, nor importable.
    """
    own = [name for extension in extensions for name in _import_extension(extension)]
    trust(own)
    allowed = [*ALLOWED_IMPORTS, *own]
    jsonargparse.set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=allowed)
    jsonargparse.set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))
    for name in ("truth", "tastes"):
        import_module(f"lit_align.testbed.{name}")
    import_module("lit_align.evaluation.judge_score")
    bases = {base for of_task in OBJECTIVES.values() for base in of_task}
    patch({getattr(import_module(module), name): presets_of(module, name) for module, name in bases})


def presets_of(module: str, base: str) -> dict[str, Any]:
    """Return the functions that make an objective, by name.

    >>> list(presets_of("lit_align.online.objective", "OnlineObjective"))
    ['conditional_pm_rlhf', 'kl_rlhf', 'pm_rlhf']
    """
    definition = find_definition(module, base)
    choices = {} if definition is None else choices_of(definition)
    presets = {name: part for name, part in choices.items() if isinstance(part.node, ast.FunctionDef)}
    return {name: getattr(import_module(part.module), name) for name, part in presets.items()}


def _import_extension(extension: str) -> list[str]:
    """Import an extension and return the names of its modules."""
    folder = at_home(extension)
    if folder.is_file() and folder.suffix == ".py":
        sys.path.insert(0, str(folder.resolve().parent))
        names = [folder.stem]
    elif folder.is_dir():
        sys.path.insert(0, str(folder.resolve()))
        names = sorted(
            {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
        )
    else:
        names = [extension]
    for name in names:
        try:
            import_module(name)
        except (ModuleNotFoundError, TypeError) as error:  # a TypeError for "./x", which Python takes as relative
            if name.startswith(".") or getattr(error, "name", None) in (name, name.partition(".")[0]):
                message = f"--extend {extension}: neither a folder, nor a file, nor a module that can be imported"
                raise ValueError(message) from error
            raise
    return names
