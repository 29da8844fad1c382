"""The number of steps is known in advance, and a checkpoint within a step is marked as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler

from lit_align.modules.step_totals import BATCHES_IN_STEP, check_steps_are_fixed, planned_steps
from tests.runner import BASE, SHORT, lit_align, metrics, ok


def host(*callbacks: Callback) -> Trainer:
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(callbacks))


def test_callbacks_that_change_the_batches_of_a_step_are_refused() -> None:
    check_steps_are_fixed(host())
    for callback, key in (
        (GradientAccumulationScheduler({0: 2, 1: 1}), "trainer.accumulate_grad_batches"),
        (BatchSizeFinder(), "data.batch_size"),
    ):
        with pytest.raises(ValueError, match=rf"{type(callback).__name__}, which changes the batches.*Set {key}"):
            check_steps_are_fixed(host(callback))


def test_the_number_of_steps_needs_the_number_of_batches() -> None:
    """Lightning counts them after the optimizer is made; with a data module they are known."""
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1)
    trainer.datamodule = None
    with pytest.raises(ValueError, match="number of training batches is not known.*pass Trainer.fit a datamodule"):
        planned_steps(trainer)


def fit(run: Path, rows: Path, *more: object) -> tuple[object, ...]:
    return ("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, *more)


SCHEDULER = ("--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 4, 1: 1}")
CHANGES = """
from lightning.pytorch import Callback
class Changes(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.accumulate_grad_batches = 1
"""


def test_a_scheduler_of_accumulation_is_refused_at_the_start(rows: Path, tmp_path: Path) -> None:
    ended = lit_align(*fit(tmp_path, rows, *SCHEDULER))
    assert ended.code == 2
    assert "GradientAccumulationScheduler, which changes the batches" in ended.out
    assert "Traceback" not in ended.out


def test_whatever_changes_the_steps_later_ends_the_run(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "changing_steps.py").write_text(CHANGES)
    accumulating = ("--trainer.accumulate_grad_batches", 2, "--data.batch_size", 2, "--trainer.max_epochs", 2)
    own = ("--extend", tmp_path / "parts", "--trainer.callbacks+=changing_steps.Changes")
    ended = lit_align(*fit(tmp_path / "run", rows, *accumulating, *own))
    assert ended.code == 2
    assert "its schedule was made for" in ended.out
    ok(lit_align(*fit(tmp_path / "other", rows, *accumulating)))


WINDOW = (
    *("--data.batch_size", 1, "--trainer.accumulate_grad_batches", 4, "--trainer.val_check_interval", 6),
    *("--trainer.max_epochs", 2, "--model.schedule", "Constant", "--model.optimizer.lr", "1e-2"),
)
BEST = (
    *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss"),
    *("--trainer.callbacks.save_top_k", -1, "--trainer.callbacks.filename", "best-{step}"),
)


@pytest.mark.parametrize(
    "exceptional", [False, pytest.param(True, marks=pytest.mark.long)], ids=["ModelCheckpoint", "any other writer"]
)
def test_a_checkpoint_inside_of_a_step(rows: Path, tmp_path: Path, exceptional: bool) -> None:
    """One of Lightning's callback is put off to the end of the step; of another writer it cannot be resumed from."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "saving_inside.py").write_text(SAVES.format(folder=tmp_path / "best"))
    own = ("--extend", tmp_path / "parts", "--trainer.callbacks+=saving_inside.Saves")
    best = own if exceptional else (*BEST, "--trainer.callbacks.dirpath", tmp_path / "best")
    whole = (*WINDOW, "--data.validation", rows)
    ok(lit_align(*fit(tmp_path / "whole", rows, *whole, *best)))
    first = min((tmp_path / "best").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    state: dict[str, Any] = torch.load(first, weights_only=True)
    assert state[BATCHES_IN_STEP] == (2 if exceptional else 0)
    resumed = lit_align(*fit(tmp_path / "resumed", rows, *whole, "--ckpt_path", first))
    if exceptional:
        assert resumed.code == 2
        assert "inside an accumulation window, and the gradients of its 2 batches" in resumed.out
        return
    ok(resumed)
    last = [[m for m in metrics(tmp_path / run) if "val/loss" in m][-1] for run in ("whole", "resumed")]
    assert last[0]["val/loss"] == last[1]["val/loss"]


SAVES = """
from lightning.pytorch import Callback
class Saves(Callback):
    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            trainer.save_checkpoint(f"{folder}/{{trainer.fit_loop.epoch_loop.total_batch_idx}}.ckpt")
"""
