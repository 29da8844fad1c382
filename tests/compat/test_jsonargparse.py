"""The private parts of jsonargparse; what the patches do is shown in ``tests/cli/test_parsing.py``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import jsonargparse
import pytest
from lightning.pytorch.callbacks import Timer

from lit_align.compat.jsonargparse import _find_action_and_subcommand, accept_words, find_option, takes_text
from tests.compat.private_parts import check_private_part

PRIVATE = {
    "jsonargparse._typehints:discard_init_args_on_class_path_change": ("parser_or_action, prev_val, value", "patch"),
    "jsonargparse._typehints:resolve_class_path_by_name": ("cls, name", "patch"),
    "jsonargparse._typehints:is_pathlike": ("typehint", "patch"),
    "jsonargparse._typehints:subclass_spec_as_namespace": (None, "_discard_all_init_args"),
    "jsonargparse._actions:_ActionHelpClassPath.resolve_help_type": ("self, value, option_string", "patch"),
    "jsonargparse._subcommands:find_action_and_subcommand": ("parser, dest, exclude", "patch"),
    "jsonargparse._actions:filter_non_parsing_actions": ("actions", "find_option"),
    "jsonargparse._actions:_ActionConfigLoad": (None, "find_option"),
    "jsonargparse._loaders_dumpers:get_yaml_default_loader": ("", "yaml_loader"),
    "jsonargparse._loaders_dumpers:yaml_load": ("stream", "read_yaml"),
}


@pytest.mark.parametrize("path", PRIVATE)
def test_private_parts(path: str) -> None:
    parameters, used_by = PRIVATE[path]
    check_private_part(path, parameters, f"jsonargparse.{used_by}")


def test_attributes_of_a_parser() -> None:
    parser, command = jsonargparse.ArgumentParser(), jsonargparse.ArgumentParser()
    command.add_argument("--key")
    parser.add_subcommands().add_subcommand("fit", command)
    assert parser._subcommands_action._name_parser_map == {"fit": command}, (
        "look at lit_align.compat.jsonargparse.subparsers"
    )
    assert "key" in [action.dest for action in command._actions], "look at lit_align.compat.jsonargparse.options"


def test_options_are_found_as_before() -> None:
    """By every name, known or not, also after options were added, and whatever types are left out."""
    parser, command = jsonargparse.ArgumentParser(), jsonargparse.ArgumentParser()
    command.add_argument("--config", action="config")
    command.add_class_arguments(WithParts, "model")
    command.add_argument("--number", "--no", "-n", type=int)
    parser.add_argument("--number")
    names = ["model", "model.part", "model.part.init_args", "number", "no", "n", "help", "config", "fit", "fit.no", ""]

    def check() -> None:
        for one in (parser, command):
            for name in [*names, *(f"fit.{name}" for name in names)]:
                for exclude in (None, jsonargparse._actions._ActionConfigLoad, jsonargparse._typehints.ActionTypeHint):
                    assert find_option(one, name, exclude) == _find_action_and_subcommand(one, name, exclude), name

    check()
    parser.add_subcommands().add_subcommand("fit", command)
    check()
    command.add_argument("--later")
    names.append("later")
    check()
    assert find_option(command, "later")[0] is not None


class WithParts:
    """A class with an argument that is a class."""

    def __init__(self, part: Mapping[str, int], other: json.JSONDecoder | None = None) -> None: ...


def test_types_of_options() -> None:
    parser = jsonargparse.ArgumentParser()
    for name, kind in (("text", str), ("number", int), ("either", int | str | None)):
        parser.add_argument(f"--{name}", type=kind)
    found = {option.dest: takes_text(option) for option in parser._actions if option.dest != "help"}
    assert found == {"text": True, "number": False, "either": True}, "look at lit_align.compat.jsonargparse.takes_text"


def test_words_beside_classes() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--key", type=Timer | Iterable[Timer] | bool | None)
    accept_words(parser, "key", ("one", "two"))
    assert [parser.parse_args(["--key", text]).key for text in ("one", "false", "null")] == ["one", False, None]
    assert parser.parse_args(["--key", "[one, two]"]).key == ["one", "two"]
    mixed = parser.parse_args(["--key", "[one, {class_path: lightning.pytorch.callbacks.Timer}]"]).key
    assert (mixed[0], mixed[1].class_path) == ("one", "lightning.pytorch.callbacks.Timer"), (
        "look at jsonargparse.accept_words"
    )
