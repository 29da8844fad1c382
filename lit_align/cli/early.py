"""What the command line says before torch is imported: help, and the mistakes of a command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_align.cli.configuration import read_task
from lit_align.cli.early_checks import check_command_line
from lit_align.cli.help import help_text
from lit_align.cli.plan_options import option_parser
from lit_align.errors import printable


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
            section = _section(words)
            if options is not None and not section:
                print(options.format_help().partition("options:")[2])
            print(help_text(command, text, task, section), end="")
            sys.exit(0)
        mistakes = check_command_line(like_fit)
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


def _section(words: Sequence[str]) -> str:
    """Return the word behind ``--help``; empty if there is none."""
    following = "".join(words[words.index("--help") + 1 :][:1]) if "--help" in words else ""
    return "" if following.startswith("--") and "." not in following else following
