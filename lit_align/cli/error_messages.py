"""A complaint of jsonargparse in short: the whole key, what was found, what was expected."""

from __future__ import annotations

import re
from textwrap import dedent

from lit_align.errors import shown

_KEY = re.compile(r'Parser key "(?P<key>[^"]+)"[^\n]*:\n+(?P<rest>.*)', re.DOTALL)
_CLASS = re.compile(r"Problem with given class_path '(?P<name>[^']+)':\n(?P<rest>.*)", re.DOTALL)
_CALLABLE = re.compile(r"Type typing\.Callable\S*.* expects a function or a callable class: (?P<rest>.*)", re.DOTALL)
_NO_FILE = re.compile(r"- Expected a path but .*? either not accessible or invalid\n- (?P<rest>.*)", re.DOTALL)
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes\nSubtypes: .*?\nErrors:\n(?P<errors>.*)"
    r"\nGiven value type: [^\n]*\nGiven value: (?P<found>.*)",
    re.DOTALL,
)
_OPTION = re.compile(r"Option '(?P<key>[^']+)' is not accepted(?:\s+Did you mean: (?P<meant>.*)\?)?")
_ARGUMENT = re.compile(r"unrecognized arguments: --(?P<key>[\w.]+)")
_MISSING = re.compile(r"the following arguments are required: (?P<keys>.*)")
_IMPORT = re.compile(r"Expected a dot import path string: (?P<found>.*)", re.DOTALL)
_DENIED = re.compile(r"Importing '(?P<found>[^']+)' is not allowed")
_TYPE = re.compile(r"Expected an? (?P<type>.*?)(?:\. Got value: (?P<found>.*))?", re.DOTALL)
_NOTHING = "Expected a <class 'NoneType'>"
_GIVEN = re.compile(r"\. Got value: Namespace\(.*", re.DOTALL)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "NoneType": "null",
}


def in_short(complaint: str) -> str:
    r"""The complaint without the parser's own types, one line for each reason; what is not understood stays as it is.

    Args:
        complaint: as jsonargparse words it.

    >>> in_short(
    ...     "Parser key \"model.lora\":\n  Problem with given class_path 'lit_align.models.LoRA':\n"
    ...     "    Parser key \"rank\":\n      Expected a <class 'int'>. Got value: many"
    ... )
    "model.lora.rank is 'many'; expected a whole number"
    """
    return _told(complaint.strip("\n"), "", "")


def _told(text: str, key: str, name: str) -> str:
    """What one level of the complaint says about a key of a class; both are empty on top."""
    if found := _KEY.fullmatch(text):
        return _told(dedent(found["rest"]), _joined(key, found["key"]), name)
    if found := _CLASS.fullmatch(text):
        return _told(dedent(found["rest"]), key, found["name"].rpartition(".")[2])
    if found := _CALLABLE.fullmatch(text):
        return _told(_GIVEN.sub("", found["rest"]), key, name)
    if found := _NO_FILE.fullmatch(text):
        return _told(found["rest"], key, name)
    if found := _UNION.fullmatch(text):
        return _any_of(found["errors"], found["found"], key, name)
    return _reason(text, key, name)


def _reason(text: str, key: str, name: str) -> str:
    """The end of a complaint, where it says what is wrong."""
    if (found := _OPTION.match(text)) and (name or key):
        near = found["meant"] or ("lr" if f"{key}.{found['key']}".endswith("optimizer.learning_rate") else "")
        meant = f"; did you mean {near}?" if near else ""
        return f"{_joined(key, found['key'])}: {name or key} has no such option{meant}"
    if (found := _ARGUMENT.match(text)) and name:
        return f"{_joined(key, found['key'])}: {name} has no such option"
    if (found := _MISSING.match(text)) and name:
        return f"{', '.join(_joined(key, each) for each in found['keys'].split(', '))}: missing; {name} needs it"
    if found := _DENIED.match(text):
        return (
            f"{_before(key)}importing {shown(found['found'])} is not allowed; expected a class of lit_align, "
            "lightning.pytorch or torch.optim, or of code that the command line names by --extend"
        )
    if (found := _IMPORT.fullmatch(text)) and key:
        return f"{key} is {shown(found['found'])}; expected the name of a class that is known"
    if (found := _TYPE.fullmatch(text)) and key and found["found"] is not None:
        return f"{key} is {shown(found['found'])}; expected {_in_words(found['type'])}"
    return f"{_before(key)}{text}"


def _any_of(errors: str, found: str, key: str, name: str) -> str:
    """What is wrong with a value that may be of several types: the reasons of those it could have been meant as."""
    each = list(dict.fromkeys(dedent(part).strip() for part in re.split(r"^  - ", errors, flags=re.MULTILINE) if part))
    each = [_hanging(error) for error in each]
    types = [match["type"] for error in each if (match := _TYPE.fullmatch(error)) and not _IMPORT.fullmatch(error)]
    expected = dict.fromkeys(_in_words(one) for one in types if "NoneType" not in one)
    reasons = [error for error in each if not _TYPE.fullmatch(error)]
    if expected and not reasons:
        return f"{_before(key, ' is ')}{shown(found)}; expected {' or '.join(expected)}"
    told = (_told(reason, key, name) for reason in reasons or each if reason != _NOTHING)
    return "\n".join(dict.fromkeys(told))


def _hanging(error: str) -> str:
    """An item of a list without the indentation of its later lines."""
    first, line, rest = error.partition("\n")
    return f"{first}{line}{dedent(rest)}" if not first.endswith(":") else error


def _in_words(kind: str) -> str:
    """A type as a user would say it."""
    if kind.startswith("typing.Literal["):
        return f"one of {kind.removeprefix('typing.Literal[').removesuffix(']')}"
    last = re.sub(r"<class '(.*)'>", r"\1", kind).rpartition(".")[2]
    return _WORDS.get(last, last)


def _joined(key: str, more: str) -> str:
    return f"{key}.{more}" if key else more


def _before(key: str, link: str = ": ") -> str:
    return f"{key}{link}" if key else ""
