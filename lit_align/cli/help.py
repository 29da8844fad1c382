"""What the command line says before torch is imported: the help of a command, and the mistakes of its arguments."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from lit_align.cli.annotations import constant, kinds
from lit_align.cli.configuration import read_task
from lit_align.cli.early_checks import check_command_line
from lit_align.cli.keys import MODULES, SECTIONS, KeyTable, bases_of, choices_of, keys_of
from lit_align.cli.plan_options import option_parser
from lit_align.cli.signatures import Definition, Parameter, find_definition
from lit_align.cli.suggestions import did_you_mean, near
from lit_align.errors import printable

WIDTH = 110
_TOP = """usage: python -m lit_align {command} [--config FILE] [--key value ...]

{text}

  -c, --config FILE       a YAML file; of several, later ones win, and options win over files
  --print_config          print the complete configuration and exit
  --help SECTION          print only a section of the keys: {sections}
  --model.objective.help NAME
                          print the options of a preset or class, here and at every key that takes a class
"""
_TRAINER = """
trainer: Lightning's Trainer, such as --trainer.max_steps, --trainer.max_epochs, --trainer.val_check_interval,
  --trainer.accumulate_grad_batches, --trainer.precision, --trainer.devices; --help trainer prints all its keys
"""


def help_text(command: str, text: str, task: str, section: str = "") -> str:
    """Return the help of a command that runs a trainer.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        text: what the command does, in a sentence.
        task: of the run, on which the keys of ``model`` depend.
        section: print the keys that begin with this only; empty for all but those of the trainer.

    Raises:
        ValueError: there is no such section.
    """
    keys = keys_of(command, task)
    if section:
        return "".join(_section(section, keys, task))
    sections = ("run", "model", *SECTIONS)
    top = _TOP.format(command=command, text=text, sections=", ".join(sections))
    parts = [part for name in sections if name != "trainer" for part in _section(name, keys, task)]
    return "".join([top, *parts, _TRAINER])


def _section(section: str, keys: KeyTable, task: str) -> Iterator[str]:
    """Yield the heading and the keys of a section."""
    prefix = section.removeprefix("--")
    chosen = [
        (key, parameter)
        for key, parameter in keys.leaves.items()
        if key == prefix or key.startswith(f"{prefix}.") or (prefix == "run" and "." not in key)
    ]
    if not chosen:
        known = dict.fromkeys(["run", *(key.split(".")[0] for key in keys.groups), *keys.leaves])
        raise ValueError(f"--help {section}: no key begins with that{did_you_mean(near(prefix, known))}")
    yield f"\n{prefix}{_heading(prefix, task)}:\n"
    for key, parameter in chosen:
        yield describe_key(key, parameter)


def _heading(section: str, task: str) -> str:
    known = {"model": MODULES[task], **SECTIONS}
    definition = find_definition(*known[section]) if section in known else None
    summary = definition.docstring.strip().splitlines()[0].rstrip(".") if definition is not None else ""
    return f" ({summary})" if summary and section != "trainer" else ""


def describe_key(key: str, parameter: Parameter) -> str:
    """Return the lines on a key: its types and default, and what it means."""
    text = " ".join([parameter.help, *_choices(bases_of(parameter))])
    wrapped = textwrap.fill(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)
    return f"  --{key} {_types(parameter)}{_default(parameter)}\n" + (f"{wrapped}\n" if text.strip() else "")


def _types(parameter: Parameter) -> str:
    words = []
    for kind in kinds(parameter.module, parameter.annotation):
        if kind.name == "Literal":
            words.append("{" + ",".join(map(str, kind.choices)) + "}")
        elif kind.name != "None":
            words.append("CLASS" if kind.definition is not None or kind.name.startswith("Callable") else kind.name)
    return "|".join(dict.fromkeys(words))


def _default(parameter: Parameter) -> str:
    if parameter.default is None:
        return ", required"
    try:
        value = constant(parameter)
    except ValueError:
        node = parameter.default.body if isinstance(parameter.default, ast.Lambda) else parameter.default
        return f", default {ast.unparse(node)}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return "" if value is None else f", default {textwrap.shorten(text, 60, placeholder=' …')}"


def _choices(bases: Iterable[Definition]) -> Iterator[str]:
    """Yield a sentence on the presets, and one on the classes, that may stand for each base class."""
    for base in bases:
        known = choices_of(base)
        presets = [name for name, choice in known.items() if isinstance(choice.node, ast.FunctionDef)]
        classes = [name for name in known if name not in presets]
        if presets:
            yield f"Presets, explained in docs/catalogue.md: {', '.join(presets)}."
        if classes:
            yield f"Classes: {', '.join(classes)}."


def answer_early(arguments: Sequence[str], text: str) -> None:
    """Print a command's help, or the mistakes of its arguments, and exit; return if the command can run."""
    command, *words = arguments
    options = option_parser() if command == "plan" else None
    if options is not None and not _asks_for_help(words):
        words = options.parse_known_args(words)[1]
    like_fit = ["fit" if command == "plan" else command, *words]
    try:
        if _asks_for_help(words):
            task = read_task(like_fit)
            section = _section_name(words)
            if options is not None and not section:
                print(options.format_help().partition("options:")[2])
            print(help_text(command, text, task, section), end="")
            sys.exit(0)
        mistakes = check_command_line(like_fit, reads_files=command != "plan" and not _only_prints(words))
    except ValueError as error:
        mistakes = [str(error)]
    if mistakes:
        print(f"usage: python -m lit_align {command} [--config FILE] [--key value ...]", file=sys.stderr)
        print(f"Tip: For details of accepted options run: python -m lit_align {command} --help", file=sys.stderr)
        for mistake in mistakes:
            print(f"error: {printable(mistake)}", file=sys.stderr)
        sys.exit(2)


def _asks_for_help(words: Sequence[str]) -> bool:
    return "--help" in words or "-h" in words


def _only_prints(words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] == "--print_config" for word in words)


def _section_name(words: Sequence[str]) -> str:
    """Return the word behind ``--help``; empty if there is none."""
    following = "".join(words[words.index("--help") + 1 :][:1]) if "--help" in words else ""
    return "" if following.startswith("--") and "." not in following else following
