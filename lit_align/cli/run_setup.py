"""What happens before a run starts: an optimizer is checked, and the folder of an earlier run moved aside."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.compat.lightning import writes_files
from lit_align.errors import printable
from lit_align.modules.optimizer import check_kind

RUN_FILES = (
    *("metrics.jsonl", "samples.jsonl", "predictions.jsonl", "data.json", "config.yaml"),
    *("tensorboard", "checkpoints", "policy", "reward_model", "figures"),
)
"""What a run writes into its folder."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise for an optimizer that cannot be used, or a setting of it that is not finite.

    Optimizers refuse other impossible settings themselves.

    Args:
        optimizer: built from the run's settings.

    Raises:
        ValueError: a number is not finite, or the optimizer evaluates the loss several times per step.
    """
    check_kind(optimizer)
    for key, value in optimizer.param_groups[0].items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"model.optimizer.{key} is {value}; expected a finite number")


def idle_trainer() -> Trainer:
    """Return a trainer for commands that never train: it writes no files and uses no accelerator."""
    settings: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **settings)


def as_list(value: Any) -> list[Any]:
    """Return a list of what is none, one or several."""
    return [] if value is None else value if isinstance(value, list) else [value]


class MoveAside(Callback):
    """Moves an earlier run in the folder to ``previous/<n>`` when training starts, so that nothing is overwritten.

    Data and models have been read by then. A run that fails before its first step puts the earlier one back.

    Args:
        starts_anew: whether the run does not go on from a checkpoint.
    """

    def __init__(self, starts_anew: bool) -> None:
        self.starts_anew = starts_anew
        self._moved: Path | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.starts_anew and trainer.is_global_zero and writes_files(trainer):
            self._moved = move_aside(Path(trainer.default_root_dir))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._moved is not None and trainer.global_step == 0:
            put_back(Path(trainer.default_root_dir), self._moved)


def move_aside(folder: Path) -> Path | None:
    """Move the files of an earlier run in a folder to a new folder inside it, and return that; None without a run."""
    old = run_files(folder)
    if not old:
        return None
    number = 1 + max((int(p.name) for p in (folder / "previous").glob("*") if p.name.isdigit()), default=0)
    target = folder / "previous" / str(number)
    target.mkdir(parents=True)
    for path in old:
        shutil.move(path, target / path.name)
    return target


def put_back(folder: Path, aside: Path) -> None:
    """Replace the files of a run that has not taken a step by those that were moved aside for it."""
    for path in run_files(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in run_files(aside):
        if (folder / path.name).is_dir():  # is empty
            (folder / path.name).rmdir()
        shutil.move(path, folder / path.name)
    for emptied in (aside, aside.parent):
        if not any(emptied.iterdir()):
            emptied.rmdir()


def run_files(folder: Path) -> list[Path]:
    """Return the files of a run in a folder; empty folders are none."""
    paths = (folder / name for name in RUN_FILES)
    return [path for path in paths if (any(path.iterdir()) if path.is_dir() else path.exists())]


def stored_date(folder: Path, ckpt_path: str | None) -> str | None:
    """Return ``data.template_date`` of the run of a checkpoint, from its ``config.yaml``; None if it is not known.

    Args:
        folder: folder of the run.
        ckpt_path: the checkpoint; ``last`` and None for one in the run's own folder.
    """
    if ckpt_path not in (None, "last"):
        folder = Path(str(ckpt_path)).absolute().parent.parent
    try:
        stored: Any = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        day = stored["data"]["template_date"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return None if day is None else str(day)


@rank_zero_only
def warn_of_unused_checkpoints(folder: Path, policy: str, command: str) -> None:
    """Warn that a command evaluates the policy before training although the run has checkpoints.

    There is no warning for the run's own exported policy, which needs no checkpoint.
    """
    if not Path(policy).resolve().is_relative_to(folder.resolve()):
        print(
            f"warning: {checkpoint_folder(folder)} holds checkpoints and none is named, so {command} takes "
            f"model.policy {printable(policy)} as it was before training; --ckpt_path last takes the newest",
            file=sys.stderr,
        )
