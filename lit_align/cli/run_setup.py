"""What happens before a run starts: an optimizer is checked, and the folder of an earlier run moved aside."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.callbacks.tensorboard import EVENT_NAME, HIDDEN_NAME
from lit_align.compat.lightning import writes_files
from lit_align.errors import printable
from lit_align.evaluation.record import next_previous
from lit_align.modules.optimizer import check_kind

RUN_FILES = (
    *("metrics.jsonl", "samples.jsonl", "evaluation.jsonl", "predictions.jsonl", "data.json", "environment.json"),
    "config.yaml",
    *("tensorboard", "checkpoints", "policy", "reward_model", "figures"),
)
"""What a run writes into its folder."""


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise for an optimizer that cannot be used, or a setting of it that is not finite.

    Optimizers refuse other impossible settings themselves.

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

    Data and models have been read by then. A run that fails before its first step leaves the earlier one as it was:
    what it has written itself (Lightning opens the logs before anything is read) is removed.

    Args:
        folder: of the run.
        starts_anew: whether the run does not go on from a checkpoint.
    """

    def __init__(self, folder: Path, starts_anew: bool) -> None:
        self.folder = folder
        self._old = run_files(folder) if starts_anew else []
        self._aside: Path | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._old and trainer.is_global_zero and writes_files(trainer):
            self._aside = move_aside(self.folder, self._old)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not self._old or trainer.global_step or not trainer.is_global_zero or not writes_files(trainer):
            return
        for logger in trainer.loggers:
            logger.finalize("failed")
        for path in run_files(self.folder):
            if self._aside is not None or path not in self._old:
                path.unlink()
        if self._aside is not None:
            _move(run_files(self._aside), self._aside, self.folder)
            shutil.rmtree(self._aside)
        _remove_empty_folders(self.folder)


def move_aside(folder: Path, files: Sequence[Path]) -> Path:
    """Move files of a run that are still there to ``previous/<n>`` in its folder, and return that."""
    aside = next_previous(folder)
    _move([path for path in files if path.is_symlink() or path.exists()], folder, aside)
    _remove_empty_folders(folder)
    return aside


def run_files(folder: Path) -> list[Path]:
    """Return the files that a run has written into its folder, links included."""
    tops = [*(folder / name for name in RUN_FILES), *folder.glob("events.out.tf*events.*")]
    paths = [path for top in tops for path in (top, *(top.rglob("*") if top.is_dir() else ()))]
    return [path for path in paths if path.is_symlink() or path.is_file()]


def _move(files: Sequence[Path], source: Path, target: Path) -> None:
    """Move files from a folder to another; event files have names there by which TensorBoard does not find them."""
    for path in files:
        names = (HIDDEN_NAME, EVENT_NAME) if "previous" in source.parts[-2:] else (EVENT_NAME, HIDDEN_NAME)
        moved = target / path.relative_to(source).with_name(path.name.replace(*names))
        moved.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, moved)


def _remove_empty_folders(folder: Path) -> None:
    """Remove what is empty of a run's folders, and of ``previous``, the innermost first."""
    tops = [folder / name for name in (*RUN_FILES, "previous") if (folder / name).is_dir()]
    folders = [path for top in tops for path in (top, *top.rglob("*")) if path.is_dir() and not path.is_symlink()]
    for path in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


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
