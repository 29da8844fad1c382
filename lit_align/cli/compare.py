"""The compare command: runs side by side on one page."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_align.errors import printable

_TEXT = """Write compare.html, one page that loads nothing from anywhere, and compare.md with the same tables:
settings with the differences first, curves, length against score over training and its Pareto front, results with
95 per cent intervals, margins by length, samples side by side, data and environment."""


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit code 2 for what cannot be compared."""
    parser = argparse.ArgumentParser(prog="python -m lit_align compare", description=_TEXT, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or of a sweep, whose cells are all taken")
    add(
        "--evaluation",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="what evaluate has written, once for each; those inside of the runs' folders are read as well",
    )
    add("--into", type=Path, default=Path("comparison"), metavar="FOLDER", help="for the files (default: %(default)s)")
    add("--title", default="", metavar="TEXT", help="heading of the page (default: the names of the runs)")
    add("--samples", type=int, default=50, metavar="N", help="most prompts with responses (default: %(default)s)")
    parsed, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        close = difflib.get_close_matches(unknown[0], ("--evaluation", "--into", "--title", "--samples"), 1)
        parser.error(f"no such option: {printable(unknown[0])}" + (f"; did you mean {close[0]}?" if close else ""))
    if parsed.samples < 0:
        parser.error(f"--samples {parsed.samples}: expected 0 or more")
    try:
        written = compare(parsed.runs, parsed.into, parsed.evaluation, parsed.title, parsed.samples)
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in ("plotly", "scipy"):
            raise
        print(f"error: compare needs {error.name}: pip install 'lit-align[eval]'", file=sys.stderr)
        sys.exit(2)
    print(*written, sep="\n")


def compare(
    folders: Sequence[Path], into: Path, evaluations: Sequence[Path] = (), title: str = "", prompts: int = 50
) -> list[Path]:
    """Compare runs, and write the page and the Markdown.

    Args:
        folders: of runs or of sweeps.
        into: folder for the two files.
        evaluations: folders of evaluations.
        title: heading of the page; the names of the runs by default.
        prompts: most prompts whose responses are shown.

    Returns:
        The paths of the files.

    Raises:
        NotARunError: a folder holds no run.
        DataError: a file of a run is damaged.
        FileNotFoundError: a folder holds no evaluation.
    """
    from lit_align.comparison.page import write_comparison
    from lit_align.comparison.runs import find_runs, read_evaluations, read_runs

    runs = read_runs(find_runs(folders))
    models, warnings = read_evaluations(evaluations, runs)
    heading = title or ", ".join(run.name for run in runs[:4]) + (
        f" and {len(runs) - 4} more" if len(runs) > 4 else ""
    )
    return write_comparison(into, heading, runs, models, warnings, prompts)
