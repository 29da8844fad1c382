"""The command that says what a run will need, before any weight is read."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from lit_align.cli import main as cli
from lit_align.cli.run_setup import idle_trainer
from lit_align.data import DataError, PreferenceData
from lit_align.data.text.render import QUALITY_PROMPT
from lit_align.modules import LitOnline, LitPreference, Module
from lit_align.objectives.base import NO_NEEDS
from lit_align.plan.estimate import Estimate, estimate
from lit_align.plan.hardware import GIB, HARDWARE, RESERVED, UTILIZATION, Hardware
from lit_align.plan.knobs import Case, knobs
from lit_align.plan.memory import Spread
from lit_align.plan.workload import largest_batch, uniform_batch, whole_responses
from lit_align.types import PairBatch

LABELS = {
    "parameters": "parameters",
    "optimizer": "optimizer states",
    "frozen": "frozen models",
    "gradients": "gradients",
    "activations": "activations",
    "cache": "keys and values",
    "working": "logits, arithmetic",
    "communication": "communication",
}
USAGE = """usage: python -m lit_align plan --config FILE [--key value ...]
       [--hardware NAME] [--memory GIB] [--flops NUMBER] [--utilization SHARE]
       [--lengths PROMPT,RESPONSE] [--architecture FILE]

The keys are those of fit. Beside them:
  --hardware      a GPU by name: {names}
  --memory        memory of each GPU in GiB, in place of the named one's
  --flops         peak floating-point operations per second of each GPU, in place of the named one's
  --utilization   share of the peak that is reached; {utilization} unless told
  --lengths       tokens of each prompt and of each response, in place of the data's
  --architecture  a config.json, in place of those of the models that the configuration names
"""


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: of the command line, without the command.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(names=", ".join(HARDWARE), utilization=UTILIZATION), end="")
        return
    own, keys = _parser().parse_known_args(arguments)
    with cli.exit_codes(), TemporaryDirectory() as folder:
        stand_in = _stand_in(own.architecture, Path(folder)) if own.architecture else None
        cli.run(["fit", *keys], partial(Planner, own=own, stand_in=stand_in))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--hardware", choices=sorted(HARDWARE), default=None)
    parser.add_argument("--memory", type=_positive, default=None)
    parser.add_argument("--flops", type=_positive, default=None)
    parser.add_argument("--utilization", type=_share, default=UTILIZATION)
    parser.add_argument("--lengths", type=_lengths, default=None)
    parser.add_argument("--architecture", type=Path, default=None)
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share above 0 and at most 1")
    return value


def _lengths(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.split(",")] if text.replace(",", "").isdigit() else []
    if len(parts) != 2 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected two numbers of tokens, such as 256,256")
    return parts[0], parts[1]


def _stand_in(architecture: Path, folder: Path) -> str:
    """A folder with the given configuration alone: nothing else of a model is looked at."""
    if not architecture.is_file():
        sys.exit(f"error: --architecture {architecture}: no such file; expected a model's config.json")
    try:
        json.loads(architecture.read_text("utf-8"))
    except ValueError as error:
        sys.exit(f"error: --architecture {architecture}: not JSON: {error}")
    shutil.copy(architecture, folder / "config.json")
    return str(folder)


class Planner(cli.Cli):
    """The command line of ``fit``, up to the point where models would be read."""

    def __init__(
        self, arguments: Sequence[str], own: argparse.Namespace, stand_in: str | None, **options: Any
    ) -> None:
        self.own, self.stand_in = own, stand_in
        super().__init__(arguments, **options)

    def before_instantiate_classes(self) -> None:
        """Put the stand-in in the place of every model that is named."""
        config = self.config[self.subcommand]
        if self.stand_in is not None:
            named = config.model.policy
            config.data.tokenizer = config.data.tokenizer or named
            config.model.policy = self.stand_in
            for part in ("reference", "score"):
                given = config.model.get(part)
                if given is not None and given.get("init_args", {}).get("path"):
                    given.init_args.path = self.stand_in
            if config.model.get("value.path"):
                config.model.value.path = self.stand_in
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """One that is never used: a plan writes no files and asks for no device."""
        return idle_trainer()

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[self.subcommand].trainer
        module: Any = self.model
        data: Any = self.datamodule
        batch, source = _workload(self.own, module, data, self.config[self.subcommand].data.max_length)
        spread = _spread(config)
        try:
            found = estimate(_fresh(module), batch, spread)
        except FileNotFoundError as error:
            if self.stand_in is not None:
                raise
            instead = "a plan needs no more than a config.json of the same shape: name it with --architecture"
            raise FileNotFoundError(f"{error}; {instead}") from error
        hardware = _hardware(self.own)
        console = Console(soft_wrap=True)
        _show(console, found, batch, source, spread)
        if hardware is not None and hardware.memory:
            _compare(console, Case(module, batch, spread), found, hardware)
        if hardware is not None and hardware.peak:
            narrow = spread.precision == "bf16-mixed" or module.loading.dtype in ("bfloat16", "float16")
            peak = hardware.peak if narrow else hardware.peak32
            steps = _steps(config, data, spread)
            if isinstance(module, LitOnline):
                steps = None if steps is None else _steps_of_rollouts(config, steps, module.settings.steps)
            _time(console, found, peak, self.own.utilization, steps)
            if isinstance(module, LitOnline):
                console.print("writing token by token waits for memory, and takes longer than its operations say")


def _fresh(module: Module) -> Module:
    return copy.deepcopy(module)


def _workload(own: argparse.Namespace, module: Module, data: PreferenceData, longest: int) -> tuple[PairBatch, str]:
    """The largest micro-batch, or rollout: of the data where they are here, of equal lengths otherwise."""
    settings = module.settings if isinstance(module, LitOnline) else None
    if own.lengths is None:
        try:
            data.splits["train"] = data.prepare_split("train")
            found = largest_batch(data)
            if settings is None:
                return found, "the largest of the data"
            tokens = settings.sampling.max_new_tokens
            return whole_responses(found, settings.responses, tokens), "prompts of the data and the longest responses"
        except (OSError, ValueError, DataError) as error:
            reason = str(error).splitlines()[0][:160]
            print(f"the data is not read ({reason}); lengths are assumed, --lengths PROMPT,RESPONSE sets them")
    prompt, response = own.lengths or (longest // 2, longest - longest // 2)
    if settings is not None:
        prompt, response = own.lengths[0] if own.lengths else longest, settings.sampling.max_new_tokens
    rows = data.budget.pairs or max(1, (data.budget.tokens or 0) // (2 * (prompt + response)))
    told = f"prompts of {prompt} and responses of {response}"
    if settings is not None:
        return whole_responses(uniform_batch(rows, prompt, 1), settings.responses, response), told
    needs = module.objective.needs if isinstance(module, LitPreference) else NO_NEEDS
    quality = len(QUALITY_PROMPT.split()) * 4 // 3 if needs.prompted else 0
    return uniform_batch(rows, prompt, response, quality, needs.mismatched), told


def _spread(trainer: Any) -> Spread:
    devices = max(1, int(trainer.devices)) if str(trainer.devices).isdigit() else 1
    return Spread(
        processes=devices * trainer.num_nodes,
        cut=trainer.strategy == "fsdp" or type(trainer.strategy).__name__ == "FullySharded",
        accumulate=trainer.accumulate_grad_batches,
        precision="bf16-mixed" if trainer.precision == "bf16-mixed" else "32-true",
        device="cpu" if trainer.accelerator == "cpu" else "cuda",
    )


def _hardware(own: argparse.Namespace) -> Hardware | None:
    named = HARDWARE.get(own.hardware or "", Hardware(0, 0.0, 0.0))
    memory = int(own.memory * GIB) if own.memory else named.memory
    found = Hardware(memory, own.flops or named.peak, own.flops or named.peak32)
    return found if found.memory or found.peak else None


def _show(console: Console, found: Estimate, batch: PairBatch, source: str, spread: Spread) -> None:
    way = (
        "one process" if spread.processes == 1 else f"{spread.processes} processes, {'fsdp' if spread.cut else 'ddp'}"
    )
    console.print(f"{found.parameters:,} parameters, {found.trained:,} trained; {way}; {spread.precision}")
    rows, sides, width = batch.input_ids.shape
    named = "micro-batch" if sides == 2 else "rollout"
    console.print(f"{named}: {rows} x {sides} rows of {width} tokens ({source})")
    console.print(f"optimizer step: {found.tokens:,} tokens, {found.operations:.3g} operations per process")
    console.print(_table(found))


def _table(found: Estimate) -> Table:
    """A column for each moment, the fullest one in bold."""
    table = Table(title="memory per process, GiB", title_justify="left")
    table.add_column("")
    for moment in found.moments:
        table.add_column(f"[bold]{moment}[/]" if moment == found.fullest else moment, justify="right")
    for name, label in LABELS.items():
        values = [getattr(memory, name) for memory in found.moments.values()]
        if any(values):
            table.add_row(label, *(f"{value / GIB:.2f}" if value else "" for value in values))
    totals = [(moment, memory.total) for moment, memory in found.moments.items()]
    shown = [f"{total / GIB:.2f}" for _, total in totals]
    marked = [
        f"[bold]{text}[/]" if moment == found.fullest else text
        for text, (moment, _) in zip(shown, totals, strict=True)
    ]
    table.add_row("together", *marked)
    return table


def _compare(console: Console, case: Case, found: Estimate, hardware: Hardware) -> None:
    room = hardware.memory * (1 - RESERVED)
    if found.memory.total <= room:
        console.print(f"fits into {hardware.memory / GIB:.0f} GiB, of which {RESERVED:.0%} are not for tensors")
        return
    console.print(
        f"[bold]does not fit[/] into {hardware.memory / GIB:.0f} GiB, of which {RESERVED:.0%} are not for tensors"
    )
    table = Table(title="what helps", title_justify="left")
    for column in ("setting", "GiB", "fits"):
        table.add_column(column, justify="left" if column == "setting" else "right")
    for knob in knobs(case):
        table.add_row(knob.setting, f"{knob.total / GIB:.2f}", "yes" if knob.total <= room else "no")
    console.print(table)


def _time(console: Console, found: Estimate, peak: float, utilization: float, steps: int | None) -> None:
    seconds = found.operations / (peak * utilization)
    console.print(f"{seconds:.3g} s per optimizer step at {utilization:.0%} of {peak:.3g} operations per second")
    if steps:
        console.print(f"{steps:,} steps: {seconds * steps / 3600:.3g} hours, validation and sampling left out")


def _steps(trainer: Any, data: PreferenceData, spread: Spread) -> int | None:
    """Optimizer steps of the run, where they can be known."""
    limit: int | None = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    if "train" not in data.splits or not trainer.max_epochs or trainer.max_epochs < 0:
        return limit
    share = replace(data.share, world=spread.processes, accumulate=spread.accumulate)
    batches = len(data.budget.training(data.splits["train"].store.widths.tolist(), share, data.seed or 0))
    steps: int = -(-batches // spread.accumulate) * trainer.max_epochs
    return min(steps, limit) if limit else steps


def _steps_of_rollouts(trainer: Any, found: int, each: int) -> int:
    """Optimizer steps where each batch is a rollout; a limit on steps counts these already.

    >>> _steps_of_rollouts(argparse.Namespace(max_steps=-1), found=3, each=4)
    12
    """
    limit = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    return found * each if limit is None else min(found * each, limit)
