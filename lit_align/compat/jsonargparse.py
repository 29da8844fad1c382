"""Patches and private parts of jsonargparse, tried with version 4.53.0; ``tests/compat`` fails when they change."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from functools import reduce, wraps
from operator import or_
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import jsonargparse._actions as actions
import jsonargparse._core as core
import jsonargparse._subcommands as subcommands
import jsonargparse._typehints as typehints
from jsonargparse._loaders_dumpers import get_yaml_default_loader, yaml_load

_discard_init_args: Any = typehints.discard_init_args_on_class_path_change
_resolve_class_path: Any = typehints.resolve_class_path_by_name
_is_pathlike: Any = typehints.is_pathlike
_HelpAction: Any = actions._ActionHelpClassPath
_resolve_help_type: Any = _HelpAction.resolve_help_type
_find_action_and_subcommand: Any = subcommands.find_action_and_subcommand


def patch(functions: Mapping[type, Mapping[str, Any]]) -> None:
    """Replace five functions of jsonargparse; four fall back to the original, and the last finds the same as it.

    - ``discard_init_args_on_class_path_change`` keeps those arguments of a replaced class that the new class also
      accepts: with ``--model.objective simpo`` over a configuration with ``dpo``, SimPO would inherit the beta of DPO.
    - ``resolve_class_path_by_name`` finds classes by their short names, but not functions that return such a class.
    - ``is_pathlike`` is true of every argument that may be a nested configuration; text that happens to be the name
      of a file would be read as settings.
    - ``_ActionHelpClassPath.resolve_help_type`` knows no functions: ``--model.objective.help dpo`` would fail.
    - ``find_action_and_subcommand`` looks through all options for each key, a fifth of the time that parsing takes.

    Args:
        functions: base class to the functions that return it, by short name.
    """

    @wraps(_resolve_class_path)
    def resolve_class_path(cls: Any, name: str) -> str:
        path: str = _resolve_class_path(cls, name)
        function = functions.get(cls, {}).get(path)
        return path if function is None else f"{_package(function)}.{path}"

    @wraps(_resolve_help_type)
    def resolve_help_type(action: Any, value: str | None, option: str) -> Any:
        for base in action._help_types:
            function = functions.get(base, {}).get((value or "").rpartition(".")[2])
            if function is not None and value in (function.__name__, f"{_package(function)}.{function.__name__}"):
                return function
        return _resolve_help_type(action, value, option)

    typehints.discard_init_args_on_class_path_change = _discard_all_init_args
    typehints.resolve_class_path_by_name = resolve_class_path
    typehints.is_pathlike = _is_pathlike_or_text
    _HelpAction.resolve_help_type = resolve_help_type
    for module in (subcommands, core):
        vars(module)["find_action_and_subcommand"] = find_option


_OPTIONS: WeakKeyDictionary[Any, tuple[list[int], dict[str, list[Any]]]] = WeakKeyDictionary()
"""Parser → the identities of its options, and its options by name."""


def find_option(parser: Any, dest: str, exclude: Any = None) -> tuple[Any, str | None]:
    """Find an option by its key, and its subcommand, as jsonargparse does, in a table of a parser's options.

    Args:
        parser: a parser, or a group of one.
        dest: the key.
        exclude: types of options that do not count.
    """
    if getattr(parser, "_subcommands_action", None) is not None:
        option, subcommand = _find_action_and_subcommand(parser, dest, exclude)
        return option, subcommand
    identities = list(map(id, parser._actions))
    known, by_name = _OPTIONS.get(parser, ([], {}))
    if known != identities:
        by_name = {}
        for action in actions.filter_non_parsing_actions(parser._actions):
            for name in {action.dest, *(name[2:] for name in action.option_strings if name.startswith("--"))}:
                by_name.setdefault(name, []).append(action)
        _OPTIONS[parser] = identities, by_name
    named = [action for action in by_name.get(dest, ()) if exclude is None or not isinstance(action, exclude)]
    weak = (actions._ActionConfigLoad, actions.ActionFail)
    return next((action for action in named if not isinstance(action, weak)), named[-1] if named else None), None


def _package(function: Any) -> str:
    """Return the package that exports a function: the first two parts of its module's name."""
    return ".".join(function.__module__.split(".")[:2])


def _discard_all_init_args(parser_or_action: Any, prev_val: Any, value: Any) -> None:
    """Start a class of lit_align, or of a user, from its own defaults."""
    if prev_val and "init_args" in prev_val and prev_val["class_path"] != value["class_path"]:
        previous = typehints.subclass_spec_as_namespace(prev_val)
        libraries = ("lightning.", "torch.")
        if not (value["class_path"].startswith(libraries) and previous["class_path"].startswith(libraries)):
            for key in {key.split(".")[0] for key in previous.init_args.keys(branches=True)}:
                previous.init_args.pop(key)
            return
    _discard_init_args(parser_or_action, prev_val, value)


def _is_pathlike_or_text(typehint: Any) -> bool:
    return bool(_is_pathlike(typehint)) or typehint is str or str in get_args(typehint)


def yaml_loader() -> Any:
    """Return jsonargparse's class of YAML loader, which reads ``1e-4`` as a number."""
    return get_yaml_default_loader()


def read_yaml(text: str) -> Any:
    """Read YAML as jsonargparse does, with :func:`yaml_loader`."""
    return yaml_load(text)


def subparsers(parser: Any) -> dict[str, Any]:
    """Return the parsers of a parser's subcommands by name; empty if it has none."""
    return dict(parser._subcommands_action._name_parser_map) if parser._subcommands_action else {}


def options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options of a parser by dotted key."""
    return {action.dest: action for action in parser._actions if action.dest}


def accept_words(parser: argparse.ArgumentParser, key: str, words: tuple[str, ...]) -> None:
    """Let an option of classes accept some words as well, alone and in lists, which stay words.

    Args:
        parser: that has the option.
        key: of the option.
        words: that are accepted.
    """
    option: Any = options(parser)[key]
    classes = [inner for inner in get_args(option._typehint) if inspect.isclass(inner)]
    one: Any = reduce(or_, [Literal[words], *(kind for kind in classes if kind not in (bool, type(None)))])
    option._typehint = one | list[one] | bool | None


def takes_text(option: argparse.Action) -> bool:
    """Return whether an option accepts any text."""
    return "str" in str(getattr(option, "_typehint", option.type))
