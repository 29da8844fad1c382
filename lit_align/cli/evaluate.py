"""The evaluate command: responses, judges, preference sets and benchmarks of one or several models."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from typing_extensions import override

from lit_align.errors import printable


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


EXAMPLE = """examples:
  python -m lit_align evaluate runs/dpo runs/ipo --prompts testbed:test --baseline testbed:policy --judge testbed
  python -m lit_align evaluate runs/dpo --pairs llmbar.jsonl --by subset
  python -m lit_align evaluate runs/dpo --tasks paper

A MODEL is a run's folder (its newest intact checkpoint is taken), a checkpoint, or a Hugging Face folder or name.
What has been computed is kept in --into and used again, so an interrupted command goes on where it was. Later commands
into the same folder add models, judges, pairs and tasks to what is there.
"""


class OptionParser(argparse.ArgumentParser):
    """A parser that suggests names for misspelt options and takes one line for an error."""

    @override
    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", message)
        if unknown is not None:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            close = difflib.get_close_matches(unknown[1].replace("-", "_").replace("__", "--", 1), known, 1)
            message = f"{unknown[1]}: no such option" + (f"; did you mean {close[0]}?" if close else "")
        print(f"usage: {self.prog} MODEL... [options]\nTip: {self.prog} --help lists the options", file=sys.stderr)
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(2)


def evaluate_parser() -> OptionParser:
    """Return the parser of the command."""
    parser = OptionParser(
        prog="python -m lit_align evaluate",
        usage="%(prog)s MODEL... [options]",
        description="Measure models: responses with win rates and intervals, preference sets, benchmarks.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="run, checkpoint, Hugging Face folder or name, or openai:MODEL",
    )
    add("--into", default="evaluation", metavar="FOLDER", help="folder of the results (default: %(default)s)")
    add("--names", type=_names, metavar="A,B", help="names of the models, baseline last (default: from the paths)")
    add("--extend", metavar="FOLDERS", help="as for fit: folders, files or modules with your own parts")
    _add_response_options(parser)
    _add_judge_options(parser)
    _add_other_options(parser)
    return parser


def _add_response_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("responses").add_argument
    add("--prompts", metavar="DATA", help="held-out prompts, any source that data.train may have")
    add("--format", default="auto", metavar="NAME", help="format of prompts and pairs, as data.format")
    add("--chat", action="store_true", help="make a user message of prompts that are plain text")
    add("--limit", type=_whole(1), metavar="N", help="most prompts, evenly spaced (default: all)")
    add(
        "--seeds",
        type=_seeds,
        default=(0,),
        metavar="0,1,..",
        help="one response to each prompt for each (default: 0)",
    )
    add("--max_new_tokens", type=_whole(1), default=256, metavar="N", help="longest response (default: %(default)s)")
    add("--temperature", type=_number(0), default=1.0, metavar="T", help="0 is greedy (default: %(default)s)")
    add("--top_p", type=_number(0), default=1.0, metavar="P", help="share that is sampled from (default: %(default)s)")
    add(
        "--reference",
        metavar="MODEL",
        help="for the KL divergence (default: what each run started from; none for none)",
    )


def _add_judge_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("judge").add_argument
    add("--baseline", metavar="MODEL", help="model that the others are compared with; it is evaluated as well")
    add(
        "--judge",
        action="append",
        default=[],
        metavar="KIND",
        help="testbed | reward:FOLDER | scores:module.function | compares:module.function | llm:MODEL; several by "
        "naming the option again",
    )
    add("--tie_margin", type=_number(0), default=0.0, metavar="X", help="scores this close tie (default: 0)")
    add("--model_url", metavar="URL", help="endpoint of openai:MODEL (default: OPENAI_BASE_URL, or OpenAI's)")
    add("--model_key", default="OPENAI_API_KEY", metavar="NAME", help="variable with its key (default: %(default)s)")
    add("--judge_url", metavar="URL", help="endpoint of llm (default: OPENAI_BASE_URL, or OpenAI's)")
    add("--judge_key", default="OPENAI_API_KEY", metavar="NAME", help="variable with its key (default: %(default)s)")
    add("--judge_template", metavar="FILE", help="question with {prompt}, {answer_1} and {answer_2}")
    add("--judge_options", type=_object, metavar="JSON", help='of its requests (default: {"temperature": 0})')
    add("--judge_budget", type=_whole(1), metavar="N", help="most requests; starting again asks for the rest")
    add("--judge_workers", type=_whole(1), default=8, metavar="N", help="requests at a time (default: %(default)s)")


def _add_other_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("preference sets, benchmarks, devices").add_argument
    add("--pairs", metavar="DATA", help="preference pairs for the accuracy of implicit rewards")
    add("--by", metavar="COLUMN", help="column of the pairs to group by, such as subset")
    add("--tasks", metavar="A,B", help="tasks of lm-evaluation-harness, files of tasks, or paper")
    add("--task_path", metavar="FOLDER", help="folder with task files of your own")
    add("--task_limit", type=_whole(1), metavar="N", help="rows of each task")
    add("--fewshot", type=_whole(0), metavar="N", help="examples in front of each row (default: the task's own)")
    add("--batch_size", type=_whole(1), default=32, metavar="N", help="responses at once (default: %(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of Hugging Face models")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:1 (default: cuda if there is one)")
    add("--resamples", type=_whole(10), default=2000, metavar="N", help="of the bootstrap (default: %(default)s)")


def _whole(least: int) -> Any:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")
        return int(text)

    return parse


def _number(least: float) -> Any:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected a number, {least:g} or more")
        return value

    return parse


def _seeds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text}: expected whole numbers, such as 0,1,2")
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> list[str]:
    names = text.split(",")
    if any(not re.fullmatch(r"\w[\w.-]*", name) for name in names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"{text}: expected different names of letters, digits and -, such as dpo,base"
        )
    return names


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text}: expected a JSON object")
    return value
