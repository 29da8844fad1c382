"""The front door: answers for help at once and imports a command's code only when that command is run."""

import difflib
import sys
from importlib import import_module

from lit_align import __version__

COMMANDS = {
    "fit": ("lit_align.cli.main", "Train a policy."),
    "validate": ("lit_align.cli.main", "Report a checkpoint's metrics on the validation pairs."),
    "test": ("lit_align.cli.main", "Report a checkpoint's metrics on the test pairs."),
    "predict": ("lit_align.cli.main", "Write rewards, lengths and margin of each pair to a file."),
    "plan": (
        "lit_align.plan.command",
        "Say what a run will need, before any weight is read: memory, operations, time.",
    ),
    "consolidate": ("lit_align.cli.consolidate", "Make a Hugging Face folder of a checkpoint."),
    "report": ("lit_align.cli.report", "Print and draw what a run's data is like; for people and for CI."),
}
HELP = """usage: python -m lit_align COMMAND [--config FILE] [--key value ...]

Preference alignment of language models as free combinations of parts.

commands:
{commands}

python -m lit_align COMMAND --help lists a command's keys.
python -m lit_align fit --config configs/quickstart.yaml is the place to start.
"""


def main() -> None:
    """Run the command named first on the command line."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
        print(HELP.format(commands=listed), end="")
    elif arguments[0] == "--version":
        print(__version__)
    elif arguments[0] in COMMANDS:
        module, _ = COMMANDS[arguments[0]]
        import_module(module).main()
    else:
        close = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(COMMANDS)}"
        sys.exit(f"error: unknown command {arguments[0]!r}{hint}")


if __name__ == "__main__":
    main()
