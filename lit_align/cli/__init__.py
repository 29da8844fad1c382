"""The command line: the code of a command is imported only when that command is run."""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lit_align import __version__
from lit_align.interrupts import handle_signals

COMMANDS = {
    "fit": ("lit_align.cli.run", "Train a policy."),
    "validate": ("lit_align.cli.run", "Report a checkpoint's metrics on the validation pairs."),
    "test": ("lit_align.cli.run", "Report a checkpoint's metrics on the test pairs."),
    "predict": ("lit_align.cli.run", "Write rewards, lengths and margin of each pair to a file."),
    "plan": (
        "lit_align.plan.command",
        "Estimate what a run will need, before any weight is read: memory, operations, time.",
    ),
    "sweep": ("lit_align.sweep.command", "Run a grid of settings and seeds, and tabulate the results."),
    "consolidate": ("lit_align.cli.consolidate", "Write a checkpoint as a Hugging Face folder."),
    "evaluate": (
        "lit_align.cli.evaluate",
        "Measure models: win rates, lengths, preference sets, benchmarks, with intervals.",
    ),
    "report": ("lit_align.cli.report", "Summarize a run's data in a table and figures, and check it against limits."),
    "compare": ("lit_align.cli.compare", "Write runs side by side as one page and as Markdown."),
}
HELP = """usage: python -m lit_align COMMAND [--config FILE] [--key value ...]

Preference alignment of language models as free combinations of parts.

commands:
{commands}

python -m lit_align COMMAND --help lists a command's keys, COMMAND --help trainer those of Lightning's Trainer.
python -m lit_align fit --config quickstart is the place to start.
"""
CONFIGURATIONS = Path(__file__).parents[1] / "configs"
"""Configurations that ship with the package."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: the command and its options; None for those of the process.
    """
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # batches differ in length; read by CUDA alone
    handle_signals()  # of which libraries make a traceback while they are imported
    arguments = with_shipped_configurations(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
        print(HELP.format(commands=listed), end="")
    elif arguments[0] == "--version":
        print(__version__)
    elif arguments[0] in COMMANDS:
        module, _ = COMMANDS[arguments[0]]
        if arguments[0] == "plan" or module == "lit_align.cli.run":
            import_module("lit_align.cli.help").answer_early(arguments, COMMANDS[arguments[0]][1])
        # LightningCLI parses its own subcommands, so it needs the command as well
        import_module(module).main(arguments if module == "lit_align.cli.run" else arguments[1:])
    else:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(COMMANDS)}"
        sys.exit(f"error: unknown command {arguments[0]!r}{hint}")


def with_shipped_configurations(arguments: Sequence[str]) -> list[str]:
    """Replace the names of configurations that ship with the package by their paths; files of that name come first.

    >>> with_shipped_configurations(["fit", "--config", "quickstart"])[2].endswith("configs/quickstart.yaml")
    True
    >>> with_shipped_configurations(["fit", "--config=mine.yaml", "--run", "quickstart"])
    ['fit', '--config=mine.yaml', '--run', 'quickstart']
    """
    words = list(arguments)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("--config", "-c"):
            at = place if equals else place + 1
            value = value if equals or at == len(words) else words[at]
            shipped = CONFIGURATIONS / f"{value.removeprefix('configs/').removesuffix('.yaml')}.yaml"
            is_name = re.fullmatch(r"[\w./-]+", value) and ".." not in value and not Path(value).exists()
            if is_name and shipped.is_file():
                words[at] = f"{option}={shipped}" if equals else str(shipped)
    return words
