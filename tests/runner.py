"""Commands of the package in forked child processes, which need not import the libraries again."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from lit_align.callbacks import training_figures
from lit_align.cli import main, run
from lit_align.cli.configuration import read_extensions, read_task
from lit_align.cli.early_checks import check_command_line
from lit_align.models import Loading, load_causal_lm

for late in ("pyarrow.compute", "torch.utils.tensorboard"):
    import_module(late)  # a run imports them late: do it before forking
load_causal_lm("testbed:policy", Loading())  # transformers builds its table of weight names at the first model

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
SHORT = ("--samples.count", "0", "--export.form", "none", *QUIET)
BASE = ("--model.policy", "testbed:policy", "--model.optimizer.lr", "1e-3", "--trainer.log_every_n_steps", "1")
TRAINED = ("--data.train", "rows", "--data.validation", "rows", "--data.batch_size", "2", "--checkpoints.keep", "-1")
for task in ("preference", "reward", "online"):
    check_command_line(["fit", "--task", task, *BASE, *SHORT, *TRAINED])  # which reads sources once per process


Parts = dict[str, Any]
BUILT: dict[tuple[str, str], Parts] = {}
"""Command and task → what LightningCLI's `setup_parser` has set; forked children use it, a quarter of a short run."""


class ParserBuiltError(Exception):
    """Raised in place of parsing."""


class ParserOnly(run.Cli):
    """A command line that builds its parser but parses nothing."""

    def setup_parser(self, *given: Any) -> None:
        before = set(self.__dict__)
        super().setup_parser(*given)
        key = (self.arguments[0], read_task(self.arguments))
        BUILT[key] = {name: value for name, value in self.__dict__.items() if name not in before}
        raise ParserBuiltError


def build_parser(command: str, task: str) -> LightningArgumentParser:
    """Build the parser of a command, once per process."""
    if (command, task) not in BUILT:
        with suppress(ParserBuiltError):
            run.run([command, "--task", task], ParserOnly)
    parsers: dict[str, LightningArgumentParser] = BUILT[command, task]["_subcommand_parsers"]
    return parsers[command]


def prepare(words: Sequence[str]) -> None:
    """Build the parser of a command before forking, if its line can be read that far."""
    with suppress(ValueError, OSError, SystemExit):
        if words[:1] in (["fit"], ["validate"], ["test"], ["predict"]):
            build_parser(words[0], read_task(words))


def use_built_parser(self: run.Cli, *given: Any) -> None:
    built = (
        BUILT.get((self.arguments[0], read_task(self.arguments))) if type(self) is run.Cli and self.arguments else None
    )
    if built is None or read_extensions(self.arguments):
        setup_parser(self, *given)
    else:
        self.__dict__.update(built)


setup_parser = run.Cli.setup_parser
run.Cli.setup_parser = use_built_parser  # type: ignore[method-assign]


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    out: str


def lit_align(*words: object, folder: Path | None = None, figures: bool = False, **environment: str) -> Ended:
    """Run ``python -m lit_align *words`` in a forked child, without the figures of training, which take seconds."""
    arguments = [str(word) for word in words]
    prepare(arguments)

    def work() -> None:
        os.environ.update(environment)
        if folder is not None:
            os.chdir(folder)
        if not figures:
            training_figures.LEAST_VALIDATIONS = sys.maxsize
        main(arguments)

    return forked([work])[0]


def distributed(processes: int, *words: object) -> list[Ended]:
    """Run a command in several processes over gloo, as a launcher would start them; rank 0 comes first."""
    return forked(ranks(processes, *words))


def ranks(processes: int, *words: object) -> list[Callable[[], None]]:
    """Return a function for each of several processes that runs a command."""
    arguments = [*map(str, words), "--trainer.devices", str(processes)]
    prepare(arguments)

    def fit(rank: int) -> None:
        training_figures.LEAST_VALIDATIONS = sys.maxsize
        main(arguments)

    return in_processes(processes, fit)


def in_processes(processes: int, run: Callable[[int], None]) -> list[Callable[[], None]]:
    """Return a function for each process that a launcher would start, which calls a function of the rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> Callable[[], None]:
        def start() -> None:
            os.environ.update(
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
                WORLD_SIZE=str(processes),
                LOCAL_WORLD_SIZE=str(processes),
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                GROUP_RANK="0",
                NODE_RANK="0",
                TORCHELASTIC_RUN_ID="tests",
            )
            run(rank)

        return start

    return [work(rank) for rank in range(processes)]


def forked(works: Sequence[Callable[[], None]]) -> list[Ended]:
    """Run functions in child processes, all at once, and wait for them."""
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(number) for number in range(len(works))]
        children = [fork(work, output) for work, output in zip(works, outputs, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return [Ended(code, output.read_text("utf-8")) for code, output in zip(codes, outputs, strict=True)]


def fork(work: Callable[[], None], output: Path) -> int:
    """Start a function in a child process, and return its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    code = 1
    try:
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code)
    except BaseException:  # a child must never return into pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ok(ended: Ended) -> Ended:
    assert ended.code == 0, ended.out
    return ended


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def metrics(run: Path, leave_out: str = "throughput") -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if leave_out not in key} for line in lines]


def losses(run: Path) -> list[float]:
    """Return the training losses; what is measured before the first step and in evaluations has other lines."""
    return [line["train/loss"] for line in metrics(run) if "train/loss" in line]


def first_loss(run: Path) -> float:
    return losses(run)[0]


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).detach().abs().max()) for name in one)
