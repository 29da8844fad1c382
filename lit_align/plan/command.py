"""The ``plan`` command: a table of what a run will need, before any weight is read."""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from lit_align.cli import run as cli
from lit_align.cli.plan_options import CPU_UTILIZATION, GIB, HARDWARE, UTILIZATION, option_parser
from lit_align.cli.run_setup import idle_trainer
from lit_align.locate import tokenizer_source
from lit_align.models.loading import read_config
from lit_align.plan.estimate import Estimate, estimate
from lit_align.plan.memory import Parallelism
from lit_align.plan.suggestions import Case, knobs, suggestions
from lit_align.plan.workload import count_steps, mean_share, plan_batch
from lit_align.types import PairBatch

RESERVED = 0.06
"""Share of a GPU's memory for its driver, the kernels and the allocator's gaps."""
KIB = 2**10
LABELS = {
    "parameters": "parameters",
    "optimizer": "optimizer states",
    "frozen": "frozen models",
    "gradients": "gradients",
    "activations": "activations",
    "cache": "keys and values",
    "working": "logits, arithmetic",
    "communication": "communication",
    "process": "program, data",
    "gaps": "allocator's gaps",
}
"""Field of ``Memory`` → row of the table."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options, keys = option_parser().parse_known_args(arguments)
    with cli.exit_codes(), TemporaryDirectory() as folder:
        stand_in = _stand_in(options.architecture, Path(folder)) if options.architecture else None
        cli.run(["fit", *keys], partial(Planner, options=options, stand_in=stand_in))


def memory_with_knobs(keys: Sequence[str]) -> dict[str, int]:
    """Return the bytes of each process of a run as it is, under an empty name, and with each knob; see `knobs`.

    Args:
        keys: of ``fit``, as on its command line.
    """
    memory: dict[str, int] = {}
    options = option_parser().parse_args([])
    if torch.cuda.is_available():
        options.memory = torch.cuda.get_device_properties(0).total_memory / GIB
    cli.run(["fit", *keys], partial(Planner, options=options, stand_in=None, fills=memory))
    return memory


def _stand_in(architecture: Path, folder: Path) -> str:
    """Return a folder with nothing but the configuration, which is all that a plan reads of a model."""
    if not architecture.is_file():
        raise FileNotFoundError(f"--architecture {architecture}: no such file; expected a model's config.json")
    try:
        json.loads(architecture.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"--architecture {architecture}: not JSON: {error}") from error
    shutil.copy(architecture, folder / "config.json")
    return str(folder)


class Planner(cli.Cli):
    """The command line of ``fit``, up to the point where models would be read.

    Args:
        arguments: of ``fit``.
        options: of ``plan``.
        stand_in: folder that every model of the configuration is taken from; None for their own.
        fills: gets the memory with each of ``KNOBS``, in place of the tables; None for the tables.
        settings: of the base class.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        options: argparse.Namespace,
        stand_in: str | None,
        fills: dict[str, int] | None = None,
        **settings: Any,
    ) -> None:
        self.options, self.stand_in, self.fills = options, stand_in, fills
        super().__init__(arguments, **settings)

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if self.stand_in is not None:
            config.data.tokenizer = config.data.tokenizer or tokenizer_source(config.model.policy)
            config.model.policy = self.stand_in
            for part in ("reference", "score"):
                settings = config.model.get(part)
                if settings is not None and settings.get("init_args", {}).get("path"):
                    settings.init_args.path = self.stand_in
            if config.model.get("value.path"):
                config.model.value.path = self.stand_in
        super().before_instantiate_classes()

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return idle_trainer()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        config, options = self.config[self.subcommand], self.options
        module: Any = self.model
        data: Any = self.datamodule
        memory, *peaks = HARDWARE.get(options.hardware, (0, 0.0, 0.0))
        memory = int(options.memory * GIB) if options.memory else memory
        batch, source = plan_batch(module, data, options.lengths, config.data.max_length)
        parallelism = parallelism_of(config.trainer)
        parallelism = replace(
            parallelism,
            device_memory=memory or parallelism.device_memory,
            program=process_memory() if parallelism.device == "cpu" else 0,  # with the data that were prepared above
        )
        if self.fills is not None:
            self.fills.update(knobs(Case(module, batch, parallelism)))
            return
        try:
            plan = estimate(copy.deepcopy(module), batch, parallelism)
        except FileNotFoundError as error:
            if self.stand_in is not None:
                raise
            instead = "a plan needs no more than a config.json of the same shape: name it with --architecture"
            raise FileNotFoundError(f"{error}; {instead}") from error
        narrow = parallelism.precision == "bf16-mixed" or module.loading.dtype in ("bfloat16", "float16")
        peak, utilization = options.flops or peaks[0 if narrow else 1], options.utilization or UTILIZATION
        if not peak and parallelism.device == "cpu":
            peak, utilization = cpu_rate(self._hidden_size()), options.utilization or CPU_UTILIZATION
        console = Console(soft_wrap=True)
        _print_estimate(console, plan, batch, source, parallelism)
        if memory:
            _print_fit(console, Case(module, batch, parallelism), plan, memory)
        if peak:
            steps = count_steps(module, data, config.trainer, parallelism)
            _print_time(console, plan, (peak, utilization), steps, mean_share(data))
            if module.task == "online":
                console.print("writing token by token waits for memory, and takes longer than its operations suggest")

    def _hidden_size(self) -> int:
        model = self.config[self.subcommand].model
        return int(read_config(model.policy, model.loading.revision).get_text_config().hidden_size)


def parallelism_of(trainer: Any) -> Parallelism:
    """Return how the settings of a trainer spread a run."""
    strategy = str(getattr(trainer.strategy, "class_path", trainer.strategy)).rpartition(".")[2]
    devices = max(1, int(trainer.devices)) if str(trainer.devices).isdigit() else 1
    return Parallelism(
        processes=devices * trainer.num_nodes,
        sharded=strategy in ("fsdp", "FullySharded"),
        accumulate=trainer.accumulate_grad_batches,
        precision="bf16-mixed" if trainer.precision == "bf16-mixed" else "32-true",
        device="cpu" if trainer.accelerator == "cpu" else "cuda",
    )


def _print_estimate(console: Console, plan: Estimate, batch: PairBatch, source: str, parallelism: Parallelism) -> None:
    strategy = f"{parallelism.processes} processes, {'fsdp' if parallelism.sharded else 'ddp'}"
    strategy = "one process" if parallelism.processes == 1 else strategy
    console.print(f"{plan.parameters:,} parameters, {plan.trained:,} trained; {strategy}; {parallelism.precision}")
    rows, sides, width = batch.input_ids.shape
    name = "micro-batch" if sides == 2 else "rollout"
    console.print(f"{name}: {rows} x {sides} rows of {width} tokens ({source})")
    console.print(f"optimizer step: {plan.tokens:,} tokens, {plan.operations:.3g} operations per process")
    table = Table(title="memory per process, GiB", title_justify="left")
    table.add_column("")
    for phase in plan.phases:
        table.add_column(phase, justify="right", style="bold" if phase == plan.fullest else "")
    for field, label in LABELS.items():
        values = [getattr(memory, field) for memory in plan.phases.values()]
        if any(values):
            table.add_row(label, *(f"{value / GIB:.2f}" if value else "" for value in values))
    table.add_row("total", *(f"{memory.total / GIB:.2f}" for memory in plan.phases.values()))
    console.print(table)


def _print_fit(console: Console, case: Case, plan: Estimate, memory: int) -> None:
    available = memory * (1 - RESERVED)
    room = f"into {memory / GIB:.3g} GiB, of which {RESERVED:.0%} are not for tensors"
    if plan.memory.total <= available:
        console.print(f"fits {room}")
        return
    console.print(f"[bold]does not fit[/] {room}")
    table = Table(title="what helps", title_justify="left")
    table.add_column("setting")
    table.add_column("GiB", justify="right")
    table.add_column("fits", justify="right")
    for setting, total in suggestions(case):
        table.add_row(setting, f"{total / GIB:.2f}", "yes" if total <= available else "no")
    console.print(table)


def _print_time(console: Console, plan: Estimate, speed: tuple[float, float], steps: int | None, share: float) -> None:
    """Print the time of a step on the largest batch, and that of the run, whose batches have a share of its tokens."""
    peak, utilization = speed
    seconds = plan.operations / (peak * utilization)
    at = f"at {utilization:.0%} of {peak:.3g} operations per second"
    console.print(f"{seconds:.3g} s per optimizer step on the largest batch, {at}")
    if steps:
        console.print(f"{steps:,} steps: {seconds * share * steps / 3600:.3g} hours, without validation and samples")


def process_memory() -> int:
    """Return the resident bytes of this process, whose imports and data are those of a run; 0 if not on Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * KIB for line in lines if line.startswith("VmRSS")), 0)


def cpu_rate(hidden_size: int) -> float:
    """Measure for half a second how many operations per second this CPU does in float32 products like a model's.

    The fastest of many products counts: others are slow because of what else the machine does.

    Args:
        hidden_size: of the model; its largest products are taken to be four times as wide.
    """
    rows, weight = torch.randn(512, hidden_size), torch.randn(hidden_size, 4 * hidden_size)
    least, end = math.inf, time.perf_counter() + 0.5
    while (start := time.perf_counter()) < end or least == math.inf:
        torch.mm(rows, weight)
        least = min(least, time.perf_counter() - start)
    return 2 * rows.numel() * weight.shape[1] / least
