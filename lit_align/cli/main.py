"""The command line: which module, which data, which links between them."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_align import callbacks
from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.cli import parsing
from lit_align.cli.logging import quiet
from lit_align.cli.objective_names import name_presets
from lit_align.cli.parsing import extensions_in, task_in
from lit_align.data import DataError, PreferenceData
from lit_align.errors import printable
from lit_align.models.scorer import ScoreError
from lit_align.modules import LitOnline, LitPreference, LitReward, Module
from lit_align.modules.step_totals import NonFiniteError, NonFiniteWeightsError
from lit_align.strategies import strategy_of

OF_A_RUN = (
    *("metrics.jsonl", "samples.jsonl", "predictions.jsonl", "data.json", "config.yaml"),
    *("tensorboard", "checkpoints", "policy", "reward_model", "figures"),
)
TASKS: dict[str, type[Module]] = {"preference": LitPreference, "reward": LitReward, "online": LitOnline}
"""What a run may be, and the module that does it."""
DEBUG = "LIT_ALIGN_DEBUG"
OF_A_PEER = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset)|Timed out waiting|DistBackend|TCPStore")
OF_A_CLUSTER = ("SLURM_NTASKS", "LSB_JOBID", "OMPI_COMM_WORLD_SIZE", "PMI_RANK")
"""Variables by which Lightning finds the other processes without an address in the environment."""
BROKE_OFF = (NonFiniteError, NonFiniteWeightsError, ScoreError)
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, MisconfigurationException)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml``, complete with every default, into the run's folder when a fit starts."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save for a fit; the other commands leave the fit's file alone."""
        if stage == "fit":
            path = Path(trainer.default_root_dir) / "config.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            described = self.config.clone()
            described.ckpt_path = None  # where this process went on from says nothing about the run
            self.parser.save(described, path, skip_none=False, overwrite=True)


class Cli(LightningCLI):
    """LightningCLI with our module and data, a run folder, and errors instead of tracebacks."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our own keys beside ``trainer``, ``model`` and ``data``."""
        parser.add_argument(
            "--task",
            type=Literal["preference", "reward", "online"],
            default=task_in(sys.argv),
            help="preference: align a policy directly; reward: train a reward model; online: RLHF on a policy's own "
            "responses. Says which keys model has.",
        )
        parser.add_argument("--run", type=str, default="runs/default", help="Folder for everything the run writes.")
        parser.add_argument(
            "--extend",
            type=str,
            default=None,
            help="Folders or modules with your own parts, comma separated; their code is imported. "
            "Counts on the command line only.",
        )
        parser.add_argument(
            "--on_changed_settings",
            type=Literal["error", "warn"],
            default="error",
            help="When a run is resumed with other settings of model or data.",
        )
        name_presets(parser, task_in(sys.argv))
        parser.add_lightning_class_args(callbacks.Samples, "samples")
        parser.add_lightning_class_args(callbacks.Checkpoints, "checkpoints")
        parser.add_lightning_class_args(callbacks.Export, "export")
        parser.link_arguments("model", "data.prompted", compute_fn=_needs_prompted, apply_on="instantiate")
        parser.link_arguments("model", "data.mismatched", compute_fn=_needs_mismatched, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Fill in what follows from other keys; refuse code that was not named on the command line."""
        config = self.config[self.subcommand]
        if config.data.tokenizer is None:
            config.data.tokenizer = config.model.policy
            config.data.revision = config.data.revision or config.model.loading.revision
        if config.data.seed is None:
            config.data.seed = int(config.seed_everything)
        self._refuse_half(config.trainer)
        self._set_length(config.trainer)
        self._refuse_steps_of_the_trainer(config)
        self._refuse_own_output(config)
        if config.extend and extensions_in(sys.argv) != config.extend.split(","):
            self._fail(
                f"the configuration asks for code of your own (extend: {config.extend}); if you trust it, "
                f"say so on the command line: --extend {config.extend}"
            )

    def _refuse_half(self, trainer: Namespace) -> None:
        """Half precision overflows where bfloat16 does not; without a GPU it would be replaced without a word."""
        if str(trainer.precision) in ("16", "16-mixed", "16-true"):
            self._fail(f"trainer.precision {trainer.precision}: expected bf16-mixed, or 32-true")

    def _set_length(self, trainer: Namespace) -> None:
        """One epoch, unless the user says how long; refuse a run without an end, which no schedule fits, or a step."""
        if trainer.max_epochs is None and trainer.max_steps == -1:
            trainer.max_epochs = 1
        if self.subcommand == "fit" and trainer.max_epochs == -1 and trainer.max_steps == -1:
            self._fail("trainer.max_epochs and trainer.max_steps are both -1: the schedule needs an end; set one")
        for key in ("max_steps", "max_epochs", "limit_train_batches"):
            if self.subcommand == "fit" and trainer[key] == 0:
                self._fail(f"trainer.{key} is 0: nothing would be trained")

    def _refuse_steps_of_the_trainer(self, config: Namespace) -> None:
        """Several optimizer steps are taken on one batch of an on-policy run, so the module has these settings."""
        if config.task != "online":
            return
        if config.trainer.gradient_clip_val:
            self._fail("trainer.gradient_clip_val has no place in an on-policy run; set model.gradient_clip")
        if config.trainer.accumulate_grad_batches != 1:
            self._fail("trainer.accumulate_grad_batches has no place in an on-policy run; set model.micro_batch")

    def _refuse_own_output(self, config: Namespace) -> None:
        """A model in the run's own folder would be moved aside, or overwritten, by the run that reads it."""
        folder, policy = Path(config.run).resolve(), Path(config.model.policy).resolve()
        if self.subcommand == "fit" and policy.is_relative_to(folder):
            self._fail(f"model.policy {config.model.policy} lies in the run's own folder; give the run another (run)")

    def instantiate_classes(self) -> None:
        """Build module, data and trainer; what their constructors refuse is the user's error, not a traceback."""
        try:
            super().instantiate_classes()
            check_optimizer(self.model.optimizer([torch.nn.Parameter(torch.zeros(1))]))  # before the weights
        except USER_ERRORS as error:
            if DEBUG in os.environ:
                raise
            self._fail(str(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes into the run's folder, whole checkpoints only."""
        config = self.config[self.subcommand]
        folder = Path(config.run)
        same_run = self._same_run(config)
        found = any(checkpoint_folder(folder).glob("*.ckpt"))
        if config.ckpt_path == "last" and not found and self.subcommand != "fit":
            self._fail(f"--ckpt_path last: no checkpoint in {checkpoint_folder(folder)}")
        if found and config.ckpt_path is None and self.subcommand != "fit":
            warn_of_the_start(folder, config.model.policy, str(self.subcommand))
        if self.subcommand == "fit" and not (found if config.ckpt_path == "last" else config.ckpt_path):
            move_aside(folder)
        if config.trainer.logger is None or config.trainer.logger is True:
            kwargs["logger"] = [
                TensorBoardLogger(folder, name="", version="tensorboard"),
                callbacks.MetricsFile(folder),
            ]
        ready = self.config_init[self.subcommand]
        kwargs["plugins"] = [*_listed(ready.trainer.plugins), callbacks.AtomicCheckpointIO(same_run.compare)]
        kwargs["strategy"] = strategy_of(ready.trainer.strategy)
        kwargs["default_root_dir"] = str(folder)
        ready.checkpoints.dirpath = str(checkpoint_folder(folder))
        kwargs["callbacks"] = [same_run, *_always(config), *_listed(ready.trainer.callbacks)]
        return super().instantiate_trainer(**kwargs)

    def _same_run(self, config: Namespace) -> callbacks.SameRun:
        settings = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False, skip_validation=True))
        return callbacks.SameRun(settings, config.on_changed_settings, resumes=self.subcommand == "fit")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the configuration describes the run, a checkpoint must not change it silently."""

    def _fail(self, message: str) -> None:
        self._parser(self.subcommand).error(message)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise for a setting that is not finite; what else cannot be, an optimizer refuses by itself.

    Args:
        optimizer: made of the run's settings.

    Raises:
        ValueError: a number is not finite.
    """
    for key, value in optimizer.param_groups[0].items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"model.optimizer.{key} is {value}; expected a finite number")


def idle_trainer() -> Trainer:
    """A trainer for commands that never train: it writes no files and asks for no device."""
    said = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(logger=False, accelerator="cpu", devices=1, **said)  # type: ignore[arg-type]


def _always(config: Namespace) -> list[Callback]:
    """The callbacks of every run, but for those that come last."""
    seed = callbacks.StepSeed(int(config.seed_everything))
    found: list[Callback] = [
        seed,
        callbacks.Precompute(),
        callbacks.History(),
        callbacks.Figures(),
        callbacks.Predictions(),
        callbacks.Watch(),
    ]
    return found if config.trainer.enable_progress_bar is False else [*found, callbacks.Progress()]


def _listed(given: Any) -> list[Any]:
    """None, one thing or several, as a list."""
    return [] if given is None else given if isinstance(given, list) else [given]


def _needs_prompted(module: Module) -> bool:
    return isinstance(module, LitPreference) and module.objective.needs.prompted


def _needs_mismatched(module: Module) -> bool:
    return isinstance(module, LitPreference) and module.objective.needs.mismatched


@rank_zero_only
def move_aside(folder: Path) -> None:
    """A fresh run in a folder that holds one loses nothing: the old one moves to ``previous/<n>``."""
    old = [folder / name for name in OF_A_RUN if (folder / name).exists()]
    if not old:
        return
    number = 1 + max((int(p.name) for p in (folder / "previous").glob("*") if p.name.isdigit()), default=0)
    target = folder / "previous" / str(number)
    target.mkdir(parents=True)
    for path in old:
        shutil.move(path, target / path.name)


@rank_zero_only
def warn_of_the_start(folder: Path, policy: str, command: str) -> None:
    """A run is there and its checkpoints are not asked for; its own policy, exported, needs none."""
    if not Path(policy).resolve().is_relative_to(folder.resolve()):
        print(
            f"warning: {checkpoint_folder(folder)} holds checkpoints and none is named, so {command} takes "
            f"model.policy {printable(policy)} as it was before training; --ckpt_path last takes the newest",
            file=sys.stderr,
        )


def _stay_on_this_machine() -> None:
    """Gloo listens where other machines cannot reach it, unless processes meet elsewhere, or a cluster says where."""
    alone = not any(name in os.environ for name in OF_A_CLUSTER)
    if alone and os.environ.get("MASTER_ADDR", "localhost") in ("localhost", "127.0.0.1", "::1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")


def main(host: type[Cli] = Cli) -> None:
    """Run the command on ``sys.argv``; exit codes: 2 for a user's error, 1 for a failed run, 143 after SIGTERM.

    Args:
        host: what is made of the command line.
    """
    quiet()
    _stay_on_this_machine()
    try:
        parsing.prepare(extensions_in(sys.argv))
        task = task_in(sys.argv)
        if task not in TASKS:
            raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
        host(
            TASKS[task],
            PreferenceData,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            trainer_defaults={
                # behind all others: one ends the run when they have done their work, one tells what they did
                "callbacks": [callbacks.GracefulStop(), callbacks.Summary()],
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "enable_model_summary": False,
            },
            seed_everything_default=0,
            parser_class=parsing.Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except SIGTERMException:
        sys.exit(143)
    except (DataError, *BROKE_OFF, *USER_ERRORS) as error:
        if DEBUG in os.environ:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        if isinstance(error, TypeError | ValueError) and not isinstance(error, DataError):
            print(f"({DEBUG}=1 shows where it was raised)", file=sys.stderr)
        sys.exit(_exit_code(error))
    except RuntimeError as error:
        if DEBUG in os.environ or not OF_A_PEER.search(str(error)):
            raise
        reason = str(error).splitlines()[0]
        print(f"error: another process ended or does not answer; its own output says why ({reason})", file=sys.stderr)
        sys.exit(1)


def _exit_code(error: Exception) -> int:
    """1 where a run broke off over its numbers or the disk, 2 where the user can mend the command or the data."""
    of_the_disk = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
    broke_off = isinstance(error, BROKE_OFF) or (isinstance(error, OSError) and error.errno in of_the_disk)
    return 1 if broke_off else 2
