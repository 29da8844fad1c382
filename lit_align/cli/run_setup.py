"""What happens before a run starts: an optimizer is checked, and the folder of an earlier run moved aside."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
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


@rank_zero_only
def move_aside(folder: Path) -> None:
    """Move the files of an earlier run in the folder to ``previous/<n>``, so that nothing is overwritten."""
    old = [folder / name for name in RUN_FILES if (folder / name).exists()]
    if not old:
        return
    number = 1 + max((int(p.name) for p in (folder / "previous").glob("*") if p.name.isdigit()), default=0)
    target = folder / "previous" / str(number)
    target.mkdir(parents=True)
    for path in old:
        shutil.move(path, target / path.name)


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
