"""The sweep command: a grid of settings and seeds, each a run, as one job that can be interrupted and repeated."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_align.errors import printable

if TYPE_CHECKING:
    from lit_align.sweep.grid import Cell, Grid
    from lit_align.sweep.worker import Task

_TEXT = """Run every cell of a grid of settings and seeds as fit would, and tabulate metrics over seeds. Cells that
have finished are skipped, so the same command goes on with a sweep that was interrupted."""
_MORE = """Other keys are those of fit, and hold for all cells: sweep grid.yaml --trainer.max_steps 50.
docs/guides/sweeps.md explains the file."""
_QUIET = ("--trainer.enable_progress_bar", "false")


def sweep_parser() -> argparse.ArgumentParser:
    """Return the parser of the options; it leaves the keys of ``fit`` to others."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_align sweep",
        usage="%(prog)s GRID [options] [--key value ...]",
        description=_TEXT,
        epilog=_MORE,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("grid", type=Path, metavar="GRID", help="YAML file with base, grid and seeds")
    add("--run", type=Path, metavar="FOLDER", help="for all runs (default: run in the file, or runs/ and its name)")
    add(
        "--processes",
        type=_count,
        metavar="N",
        help="cells at once (default: one for each CUDA device, or 1); each gets a device, or a share of the cores",
    )
    add("--retries", type=_count, default=1, metavar="N", help="for a cell that fails (default: %(default)s)")
    add("--metrics", type=_names, default=(), metavar="A,B", help="columns of the table, instead of the usual ones")
    add("--dry-run", action="store_true", help="check and list the cells, and run nothing")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit codes: 1 if cells failed, 2 for a user's error, 143 after SIGTERM, 130 after Ctrl-C."""
    parser = sweep_parser()
    parsed, options = parser.parse_known_args(list(arguments))
    if parsed.processes == 0:
        parser.error("argument --processes: 0: expected 1 or more")
    from lit_align.sweep.grid import check_cells, read_grid

    try:
        grid = read_grid(parsed.grid, options, parsed.run)
        mistakes = check_cells(grid.cells)
    except (OSError, ValueError) as error:
        mistakes = [str(error)]
    if mistakes:
        for mistake in mistakes:
            print(f"error: {printable(mistake)}", file=sys.stderr)
        sys.exit(2)
    if grid.evaluate is not None:
        from lit_align.cli.evaluate import parse_options

        parse_options(evaluation_words(grid, ["run"]))  # ends the process if an option is wrong
    sys.exit(_sweep(grid, parsed))


def evaluation_words(grid: Grid, runs: Sequence[str]) -> list[str]:
    """Return the arguments of ``evaluate`` for the runs of a grid."""
    words = [*runs, "--into", str(grid.folder / "evaluation")]
    for key, value in (grid.evaluate or {}).items():
        if value is False:
            continue
        if key == "judge" and isinstance(value, list):  # each is an option of its own
            words += [word for judge in value for word in ("--judge", str(judge))]
            continue
        values = [",".join(map(str, value))] if isinstance(value, list) else [] if value is True else [str(value)]
        words += [f"--{key}", *values]
    return words


def _sweep(grid: Grid, parsed: argparse.Namespace) -> int:
    """Run the cells that have not finished and report on all; return the exit code."""
    from lit_align.cli.run import exit_codes

    with exit_codes():
        from lit_align.sweep.state import state_of

        if grid.search is not None:
            return _search(grid, parsed)
        tasks = cell_tasks(grid)
        states = {task.name: state_of(task.folder, task.identity) for task in tasks}
        for cell in grid.cells if parsed.dry_run else ():
            print(f"{cell.name}  ({_in_words(states[cell.name])})", *_values(cell), sep="\n    ")
        if parsed.dry_run:
            print(f"{len(tasks)} cells in {grid.folder}, of which {_finished(states)} have finished")
            return 0
        for name, state in states.items():
            if state.kind == "anew":
                print(f"{name}: starts anew, since {printable(state.reason)}")
        failed = _run_cells(grid, [task for task in tasks if states[task.name].kind != "finished"], parsed)
        return _report(grid, failed, parsed.metrics or grid.metrics)
    return 0


def _search(grid: Grid, parsed: argparse.Namespace) -> int:
    """Run the trials of a search that have not ended and report on all, the best first; return the exit code."""
    from lit_align.sweep.grid import searched_cells
    from lit_align.sweep.search import Trials
    from lit_align.sweep.state import state_of
    from lit_align.sweep.table import last_values
    from lit_align.sweep.worker import LOG

    assert grid.search is not None
    trials = Trials(grid.search, grid.folder, [grid.base, grid.seeds])
    print(f"{grid.search.trials} trials in {grid.folder}, of which {len(trials.values)} have finished", flush=True)
    while numbers := [] if parsed.dry_run else trials.ask(max(1, (parsed.processes or 1) // len(grid.seeds))):
        asked = {number: searched_cells(grid, number, trials.all[number]) for number in numbers}
        part = replace(grid, cells=tuple(cell for cells in asked.values() for cell in cells))
        states = {task.name: (task, state_of(task.folder, task.identity)) for task in cell_tasks(part)}
        failed = _run_cells(part, [task for task, state in states.values() if state.kind != "finished"], parsed)
        for number, cells in asked.items():
            ends = [last_values(cell.folder).get(grid.search.metric) for cell in cells if cell.name not in failed]
            known = [end for end in ends if end is not None]
            if len(ends) == len(cells) and not known:
                raise ValueError(f"search.metric {grid.search.metric}: {cells[0].folder} has not reported it")
            value = sum(known) / len(cells) if len(known) == len(cells) else None
            trials.tell(number, value)
            print(f"trial {number}: {grid.search.metric} {'failed' if value is None else f'{value:.4g}'}", flush=True)
    if parsed.dry_run:
        return 0
    ordered = [*trials.values, *(number for number in trials.all if number not in trials.values)]
    cells = tuple(cell for number in ordered for cell in searched_cells(grid, number, trials.all[number]))
    ended = {cell.name for number in trials.values for cell in searched_cells(grid, number, trials.all[number])}
    failed = {cell.name: cell.folder / LOG for cell in cells if cell.name not in ended}
    metrics = dict.fromkeys([grid.search.metric, *(parsed.metrics or grid.metrics)])
    return _report(replace(grid, cells=cells), failed, list(metrics))


def _values(cell: Cell) -> list[str]:
    return [printable(f"{key}: {value}") for key, value in cell.values.items()]


def _in_words(state: Any) -> str:
    words = {"finished": "finished", "resume": "goes on from its checkpoint", "start": "to run"}
    return words.get(state.kind) or f"starts anew: {printable(state.reason)}"


def _finished(states: Mapping[str, Any]) -> int:
    return sum(state.kind == "finished" for state in states.values())


def cell_tasks(grid: Grid) -> list[Task]:
    """Return what to run for each cell of a grid."""
    from lit_align.sweep.prepare import preparation_group, shared_options
    from lit_align.sweep.state import identify_cell
    from lit_align.sweep.worker import Task

    tasks = []
    for cell in grid.cells:
        shared = shared_options(cell.arguments, grid.folder / "cache", grid.share_reference)
        arguments = [*cell.arguments, *shared]
        identity = identify_cell(cell.arguments, grid.share_reference)
        quiet = [] if "trainer.enable_progress_bar" in identity["settings"] else _QUIET
        group = preparation_group(arguments)
        tasks.append(Task(cell.name, cell.folder, [*arguments, *quiet], identity, group=group))
    return tasks


def _run_cells(grid: Grid, tasks: Sequence[Task], parsed: argparse.Namespace) -> dict[str, Path]:
    """Prepare the caches and run cells; return the logs of those that failed."""
    from lit_align.sweep.pool import ProcessPool, SweepRun, prepare_caches
    from lit_align.sweep.state import state_of
    from lit_align.sweep.worker import import_for_runs

    done = len(grid.cells) - len(tasks)
    before = f", {done} of them finished before" if done else ""
    print(f"{len(grid.cells)} cells in {grid.folder}{before}", flush=True)
    if not tasks:
        return {}
    import_for_runs()
    devices = cuda_devices()
    processes = min(parsed.processes or len(devices) or 1, len(tasks))
    prepare_caches(ProcessPool(1, devices[:1]), tasks)
    pool = ProcessPool(processes, devices, threads_each(processes) if not devices else None)
    run = SweepRun(
        pool, len(grid.cells), done, parsed.retries, lambda task: state_of(task.folder, task.identity).kind == "resume"
    )
    return run.run(tasks)


def cuda_devices() -> list[str]:
    """Return the CUDA devices that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    if not count:
        return []
    return visible.split(",")[:count] if visible else [str(number) for number in range(count)]


def threads_each(processes: int) -> int | None:
    """Return with how many threads each of several processes computes; None for as many as a run alone."""
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _report(grid: Grid, failed: Mapping[str, Path], metrics: Sequence[str]) -> int:
    """Write and print the table, evaluate and compare; return the exit code."""
    from lit_align.sweep.table import write_tables

    finished = [cell for cell in grid.cells if cell.name not in failed]
    print(f"\n{write_tables(grid.folder, grid.cells, [cell.name for cell in finished], failed, metrics)}\n")
    for name, log in failed.items():
        print(f"failed: {name}: {log}", file=sys.stderr)
    codes = [bool(failed)]
    runs = [str(cell.folder) for cell in finished]
    if runs and grid.evaluate is not None:
        codes.append(_run_command("evaluate", *evaluation_words(grid, runs)))
    if runs:
        if find_spec("plotly") is None:
            print("no page: compare needs plotly: pip install 'lit-align[eval]'", file=sys.stderr)
        else:
            shown = ("--evaluation", str(grid.folder / "evaluation")) if grid.evaluate is not None else ()
            codes.append(_run_command("compare", *runs, "--into", str(grid.folder / "comparison"), *shown))
    print(grid.folder / "sweep.md", flush=True)
    return int(any(codes))


def _run_command(*words: str) -> bool:
    """Run a command of the package in a process of its own; return whether it failed."""
    code = subprocess.run([sys.executable, "-m", "lit_align", *words], check=False).returncode
    if code:
        print(f"error: {words[0]} ended with code {code}", file=sys.stderr)
    return code != 0
