"""The commands that run a trainer: fit, validate, test and predict, on top of LightningCLI."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lit_align import callbacks
from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.callbacks.tensorboard import hparams_of
from lit_align.cli.configuration import check_numbers, read_extensions, read_task
from lit_align.cli.error_messages import out_of_memory, print_warning, what_helps, without_foreign_advice
from lit_align.cli.keys import RUN_KEYS, TRAINER_DEFAULTS
from lit_align.cli.parsing import USER_ERRORS, Parser, prepare_parsing
from lit_align.cli.run_setup import (
    MoveAside,
    as_list,
    check_optimizer,
    idle_trainer,
    stored_date,
    warn_of_unused_checkpoints,
)
from lit_align.cli.settings import DEBUG, LOGGERS, check_packages, check_settings
from lit_align.compat.jsonargparse import accept_words, options, subparsers, takes_text
from lit_align.compat.lightning import writes_files
from lit_align.data import DataError, PreferenceData
from lit_align.errors import printable
from lit_align.interrupts import handle_signals
from lit_align.locate import tokenizer_source
from lit_align.models.export import ExportError
from lit_align.models.scorer import ScoreError
from lit_align.modules import LitModule, LitOnline, LitPreference, LitReward
from lit_align.modules.step_totals import NonFiniteError, NonFiniteWeightsError
from lit_align.strategies import strategy_of

TASKS: dict[str, type[LitModule]] = {"preference": LitPreference, "reward": LitReward, "online": LitOnline}
"""The values of ``task``, and the module that each trains."""
_FAILED_RUN = (NonFiniteError, NonFiniteWeightsError, ScoreError, ExportError, callbacks.HubError)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
_PEER_ERROR = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)|Timed out waiting|DistBackend|TCPStore")
_CLUSTER_VARIABLES = ("SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_RANK")
"""Variables by which Lightning finds the other processes without an address in the environment."""
_IRRELEVANT_WARNINGS = (
    "does not have many workers",
    "sync_dist=True",
    "Checkpoint directory",
    "Couldn't infer the batch indices",
    "across ranks is zero",
    "save_last=True",
    "Using ModelCheckpoint with manual optimization",
    "isinstance(treespec",
    "_checkpointing` is deprecated",
    "method of metric MatchingDivergence was called before",
    "was called before the ``update`` method",
)
"""Warnings of libraries about themselves, of which a user's run is no cause."""


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml``, complete with every default, into the run's folder when a fit starts.

    Args:
        parser: of the command.
        config: what it has parsed.
        settings: the same as plain values.
        options: of Lightning's callback.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, settings: Mapping[str, Any], **options: Any
    ) -> None:
        super().__init__(parser, config, **options)
        # which checkpoint this process resumed from does not describe the run
        self.settings = {**settings, "ckpt_path": None}

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Do nothing yet: a run that cannot start must not replace the configuration of an earlier one."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and writes_files(trainer):
            self.save_config(trainer, pl_module, "fit")

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), "utf-8")
        for logger in trainer.loggers:
            logger.log_hyperparams(hparams_of(self.settings))


class Cli(LightningCLI):
    """LightningCLI with a module of lit_align, its data, a folder per run, and messages instead of tracebacks.

    The order of the steps: ``add_arguments_to_parser`` declares the keys; ``before_instantiate_classes`` completes and
    checks them; ``instantiate_classes`` builds data and module; ``instantiate_trainer`` prepares the run's folder and
    puts loggers, callbacks, checkpoint format and strategy together.

    Args:
        arguments: of the command line, the command first.
        action: called with module and data in place of the command; no trainer is set up.
        options: of LightningCLI.
    """

    subcommands: Callable[[], dict[str, set[str]]]

    def __init__(
        self, arguments: Sequence[str], action: Callable[[Any, Any], None] | None = None, **options: Any
    ) -> None:
        self.arguments = list(arguments)
        self.action = action
        commands = LightningCLI.subcommands()
        given = {name: skipped for name, skipped in commands.items() if name in self.arguments[:1]}
        self.subcommands = lambda: given or commands  # declaring the options of all four takes half a second longer
        super().__init__(args=self.arguments, **options)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        known = options(subparsers(parser).get(str(self.arguments[0]), parser)) if self.arguments else {}
        check_numbers(self.arguments, {key for key, option in known.items() if takes_text(option)})
        self.config = parser.parse_args(args)  # without Lightning's warning that sys.argv holds arguments as well

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        types = {"task": Literal["preference", "reward", "online"], "on_changed_settings": Literal["error", "warn"]}
        for name in ("task", "run", "extend", "on_changed_settings"):
            default = read_task(self.arguments) if name == "task" else RUN_KEYS[name].default
            parser.add_argument(f"--{name}", type=types.get(name, str), default=default, help=RUN_KEYS[name].help)
        parser.add_lightning_class_args(callbacks.Samples, "samples")
        parser.add_lightning_class_args(callbacks.TrainingEvaluation, "evaluation")
        parser.add_lightning_class_args(callbacks.Checkpoints, "checkpoints")
        parser.add_lightning_class_args(callbacks.Export, "export")
        parser.add_lightning_class_args(callbacks.HubPush, "hub")
        accept_words(parser, "trainer.logger", tuple(LOGGERS))
        parser.link_arguments("model", "data.prompted", compute_fn=_needs_prompted, apply_on="instantiate")
        parser.link_arguments("model", "data.mismatched", compute_fn=_needs_mismatched, apply_on="instantiate")

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.data.tokenizer is None:
            config.data.tokenizer = tokenizer_source(config.model.policy)
            config.data.revision = config.data.revision or config.model.loading.revision
        if config.data.seed is None:
            config.data.seed = int(config.seed_everything)
        if config.data.template_date is None:
            resumes = self.subcommand != "fit" or config.ckpt_path
            stored = stored_date(Path(config.run), config.ckpt_path) if resumes else None
            config.data.template_date = stored or str(date.today())
        if config.trainer.max_epochs is None and config.trainer.max_steps == -1:
            config.trainer.max_epochs = 1
        if config.extend and read_extensions(self.arguments) != config.extend.split(","):
            self._fail(
                f"the configuration asks for code of your own (extend: {config.extend}); if you trust it, "
                f"say so on the command line: --extend {config.extend}"
            )
        try:
            if self.action is None:
                check_settings(config, str(self.subcommand))
        except ValueError as error:
            self._fail(str(error))

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
            check_optimizer(self.model.optimizer([torch.nn.Parameter(torch.zeros(1))]))  # before weights are read
        except (MisconfigurationException, *USER_ERRORS) as error:
            if DEBUG in os.environ:
                raise
            self._fail(str(error))

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        if self.action is not None:
            return idle_trainer()
        config, instances = self.config[self.subcommand], self.config_init[self.subcommand]
        check_packages(config.model)
        folder = Path(config.run)
        settings = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True))
        self.save_config_kwargs["settings"] = settings
        resumes = self.subcommand == "fit"
        resume_check = callbacks.ResumeCheck(settings, config.on_changed_settings, resumes=resumes)
        starts_anew = self._starts_anew(folder, config)
        kwargs["logger"] = callbacks.run_loggers(instances.trainer.logger, folder, settings, starts_anew)
        kwargs["plugins"] = [*as_list(instances.trainer.plugins), callbacks.AtomicCheckpointIO(resume_check.compare)]
        kwargs["strategy"] = strategy_of(instances.trainer.strategy)
        kwargs["default_root_dir"] = str(folder)
        instances.checkpoints.dirpath = str(checkpoint_folder(folder))
        own = as_list(instances.trainer.callbacks)
        shows_progress = config.trainer.enable_progress_bar is not False
        shows_progress = shows_progress and not any(isinstance(callback, ProgressBar) for callback in own)
        kwargs["callbacks"] = [
            MoveAside(folder, starts_anew),
            resume_check,
            *callbacks.first_callbacks(int(config.seed_everything), shows_progress),
            *own,
        ]
        return super().instantiate_trainer(**kwargs)

    def _starts_anew(self, folder: Path, config: Namespace) -> bool:
        """Return whether a fit goes on from no checkpoint; refuse or warn if one is missing or not used."""
        has_checkpoints = any(checkpoint_folder(folder).glob("*.ckpt"))
        if self.subcommand == "fit":
            if config.ckpt_path == "last" and not has_checkpoints:
                rank_zero_warn(f"--ckpt_path last: no checkpoint in {checkpoint_folder(folder)}; the run starts anew")
            return not (has_checkpoints if config.ckpt_path == "last" else config.ckpt_path)
        if config.ckpt_path == "last" and not has_checkpoints:
            self._fail(f"--ckpt_path last: no checkpoint in {checkpoint_folder(folder)}")
        elif config.ckpt_path is None and has_checkpoints:
            warn_of_unused_checkpoints(folder, config.model.policy, str(self.subcommand))
        return False

    @override
    def _parse_ckpt_path(self) -> None:
        """Do nothing: the configuration describes the run, settings in a checkpoint must not change it silently."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        if self.action is None:
            super()._run_subcommand(subcommand)
        else:
            self.action(self.model, self.datamodule)

    def _fail(self, message: str) -> None:
        self._parser(self.subcommand).error(message)


def _needs_prompted(module: LitModule) -> bool:
    return module.data_needs.prompted


def _needs_mismatched(module: LitModule) -> bool:
    return module.data_needs.mismatched


def main(arguments: Sequence[str]) -> None:
    """Run a command; exit codes: 2 for a user's error, 1 for a failed run, 143 after SIGTERM, 130 after Ctrl-C.

    Args:
        arguments: of the command line, the command first: ``["fit", "--config", "configs/quickstart.yaml"]``.
    """
    with exit_codes(arguments):
        run(arguments)


def run(arguments: Sequence[str], command_line: Callable[..., Cli] = Cli) -> None:
    """Run a command; what goes wrong is raised.

    Args:
        arguments: of the command line, the command first.
        command_line: builds everything from the arguments and runs the command; ``plan`` has its own, ``consolidate``
            gives it an action in place of the command.
    """
    silence_libraries()
    _bind_gloo_to_loopback()
    prepare_parsing(read_extensions(arguments))
    command_line(
        arguments,
        model_class=TASKS[read_task(arguments)],
        datamodule_class=PreferenceData,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
        trainer_defaults={"callbacks": callbacks.last_callbacks(), **TRAINER_DEFAULTS},
        seed_everything_default=0,
        parser_class=Parser,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )


@contextmanager
def exit_codes(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Turn exceptions into a message and an exit code; with LIT_ALIGN_DEBUG set, let them pass.

    Args:
        arguments: of the command line, for the advice where memory was short.
    """
    handle_signals()
    try:
        yield
    except (MisconfigurationException, *_FAILED_RUN, *USER_ERRORS) as error:
        if DEBUG in os.environ:
            raise
        print(f"error: {printable(without_foreign_advice(str(error)))}", file=sys.stderr)
        if isinstance(error, TypeError | ValueError) and not isinstance(error, DataError):
            print(f"({DEBUG}=1 shows where it was raised)", file=sys.stderr)
        sys.exit(_exit_code(error))
    except RuntimeError as error:
        words = None if DEBUG in os.environ else _of_runtime(error)
        if words is None:
            raise
        print(f"error: {words}", file=sys.stderr, flush=True)
        if isinstance(error, torch.OutOfMemoryError):
            print(what_helps(read_task(arguments), _planned_memory(arguments)), file=sys.stderr)
        sys.exit(1)


def _planned_memory(arguments: Sequence[str]) -> Mapping[str, int]:
    """Return what ``plan`` says of the memory of a fit with each of ``KNOBS``; nothing where it cannot tell."""
    if arguments[:1] != ["fit"] or os.environ.get("LOCAL_RANK", "0") != "0":
        return {}
    plan: Any = import_module("lit_align.plan.command")
    logging.disable()  # what Lightning and transformers say of the planned run would stand among the words
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            memory: dict[str, int] = plan.memory_with_knobs(arguments[1:])
    except (Exception, SystemExit):  # noqa: BLE001 (the run's own error has been told)
        return {}
    finally:
        logging.disable(logging.NOTSET)
    return memory


def _of_runtime(error: RuntimeError) -> str | None:
    """Word an error of a library that a user can do something about; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory(error)
    if "DataLoader worker" in str(error):
        parts = [without_foreign_advice(str(error)), *getattr(error, "__notes__", ())]
        return printable("; ".join(parts))
    if _PEER_ERROR.search(str(error)):
        reason = str(error).splitlines()[0]
        return f"another process ended or does not answer; its own output says why ({reason})"
    return None


def _exit_code(error: Exception) -> int:
    """Return 1 if a run failed over its numbers or the disk, 2 if the user can correct the command or the data."""
    disk_failed = isinstance(error, OSError) and error.errno in _DISK_ERRORS
    return 1 if disk_failed or isinstance(error, _FAILED_RUN) else 2


def silence_libraries() -> None:
    """Silence what libraries report about themselves rather than about the user's run; warnings take one line each."""
    warnings.showwarning = print_warning
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of libraries about each other
    for text in _IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{re.escape(text)}.*")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search("litlogger|litmodels|TPU available", record.getMessage()))
    transformers_logging: Any = transformers.utils.logging
    transformers_logging.disable_progress_bar()


def _bind_gloo_to_loopback() -> None:
    """Let gloo listen on the loopback interface only, unless processes meet on another machine or in a cluster."""
    in_cluster = any(name in os.environ for name in _CLUSTER_VARIABLES)
    if not in_cluster and os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1", "::1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
