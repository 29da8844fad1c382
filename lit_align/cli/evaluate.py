"""The evaluate command: responses, judges, preference sets and benchmarks of one or several models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lit_align.cli.evaluate_options import evaluate_parser


def main(arguments: Sequence[str]) -> None:
    """Run the command; exit codes as those of a run."""
    options = parse_options(arguments)
    from lit_align.cli.evaluation_run import run_evaluation

    run_evaluation(options)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; ends the process if they are wrong, one by one or together."""
    parser = evaluate_parser()
    options = parser.parse_args(list(arguments))
    if problem := _problem(options):
        parser.error(problem)
    return options


def _problem(options: argparse.Namespace) -> str:
    """Return what is wrong about options that are right one by one; empty if nothing is."""
    if not (options.prompts or options.pairs or options.tasks):
        return "nothing to evaluate on: name --prompts, --pairs or --tasks"
    needs_prompts = {"--judge": options.judge, "--baseline": options.baseline}
    for name in (name for name, value in needs_prompts.items() if value and not options.prompts):
        return f"{name} has no effect without --prompts"
    if options.baseline and not options.judge:
        return "--baseline has no effect without --judge"
    for judge in (kind for kind in options.judge if kind.startswith(("llm:", "compares:")) and not options.baseline):
        return f"--judge {judge} compares two answers: name the other model with --baseline"
    if len(set(options.judge)) < len(options.judge):
        return "--judge names a judge twice; expected different ones"
    if options.by and not options.pairs:
        return "--by has no effect without --pairs"
    count = len(options.models) + bool(options.baseline and options.baseline not in options.models)
    if options.names and len(options.names) != count:
        return f"--names has {len(options.names)} names for {count} models"
    return ""
