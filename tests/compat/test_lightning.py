"""The private parts of Lightning."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer

from lit_align.compat.lightning import release_children
from tests.compat.private_parts import check_private_part

CHECKPOINT = "lightning.pytorch.callbacks:ModelCheckpoint"
CLI = "lightning.pytorch.cli:LightningCLI"
PRIVATE = {
    f"{CHECKPOINT}._find_last_checkpoints": ("self, trainer", "StepCheckpoint"),
    f"{CHECKPOINT}._save_checkpoint": ("self, trainer, filepath", "StepCheckpoint"),
    f"{CHECKPOINT}._should_remove_checkpoint": ("self, trainer, previous, current", "StepCheckpoint"),
    f"{CHECKPOINT}._should_skip_saving_checkpoint": ("self, trainer", "StepCheckpoint.save"),
    f"{CHECKPOINT}._monitor_candidates": ("self, trainer", "StepCheckpoint.save"),
    f"{CHECKPOINT}._save_topk_checkpoint": ("self, trainer, monitor_candidates", "StepCheckpoint.save"),
    f"{CHECKPOINT}._save_last_checkpoint": ("self, trainer, monitor_candidates", "StepCheckpoint.save"),
    "lightning.pytorch.loops.fit_loop:_FitLoop._should_accumulate": ("self", "is_accumulating"),
    "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop._should_check_val_fx": (
        "self, data_fetcher",
        "validation_follows",
    ),
    "lightning.pytorch.strategies.launchers.subprocess_script:_SubprocessScriptLauncher": (None, "child_processes"),
    "lightning.fabric.strategies.launchers.subprocess_script:_ChildProcessObserver._run": ("self", "release_children"),
    f"{CLI}._parse_ckpt_path": ("self", "cli.run.Cli"),
    f"{CLI}._run_subcommand": ("self, subcommand", "cli.run.Cli"),
}


@pytest.mark.parametrize("path", PRIVATE)
def test_private_parts(path: str) -> None:
    parameters, used_by = PRIVATE[path]
    check_private_part(path, parameters, f"lightning.{used_by}")


ATTRIBUTES = {
    "fit_loop._data_fetcher": "validation_follows",
    "fit_loop.epoch_loop.batch_progress.is_last_batch": "epoch_under_way",
    "fit_loop.epoch_loop.batch_progress.current.processed": "is_inside_batch",
    "fit_loop.epoch_loop.total_batch_idx": "StepSeed, lit_align.callbacks",
    "fit_loop.epoch_progress.current.ready": "count_begun_epoch",
    "fit_loop.epoch_progress.total.completed": "epoch_under_way",
    "callbacks": "callbacks_of",
    "_val_check_time_interval": "seconds_between_validations",
}


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_attributes_of_a_trainer(path: str) -> None:
    part: object = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, val_check_interval="00:00:10:00", max_epochs=1
    )
    for name in path.split("."):
        assert hasattr(part, name), f"Trainer.{path} is gone; look at lit_align.compat.lightning.{ATTRIBUTES[path]}"
        part = getattr(part, name)


def test_a_lightning_optimizer_has_its_optimizer_inside() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    assert LightningOptimizer(optimizer)._optimizer is optimizer, "look at lit_align.compat.lightning.unwrapped"


@pytest.mark.parametrize("released", [False, True])
def test_a_process_that_is_leaving_is_not_killed_by_the_end_of_another(released: bool) -> None:
    """Lightning's observer kills all processes when one has ended with a code of its own, unless they are released."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(143)"])
    launcher = SimpleNamespace(procs=[process])
    observer, killed = _ChildProcessObserver(0, launcher.procs), []
    observer._terminate_all = lambda: killed.append(True)
    if released:
        release_children(SimpleNamespace(strategy=SimpleNamespace(launcher=launcher)))  # type: ignore[arg-type]
    process.wait()
    assert observer._run()
    assert bool(killed) is not released
    assert launcher.procs == [process]
