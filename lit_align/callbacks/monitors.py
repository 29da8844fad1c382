"""Callbacks that follow a metric: a check before the first step that it will exist, and the best checkpoint."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, Checkpoints
from lit_align.callbacks.evaluation import TrainingEvaluation
from lit_align.compat.lightning import callbacks_of
from lit_align.modules import LitModule

_LIBRARIES = ("lightning.", "lit_align.")
_PROGRESS = ("step", "epoch")
"""What Lightning itself counts."""
_TRAINING = ("grad_norm", "learning_rate", "tokens_seen", "throughput/tokens_per_second", "beta/effective")


class MonitorCheck(Callback):
    """Refuses a callback that follows a metric which the run will not report, before the first step."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the metrics that are followed.

        Raises:
            ValueError: a metric will not exist; lists those that will.
        """
        if not isinstance(pl_module, LitModule):
            return
        validates = any(trainer.num_val_batches) if trainer.num_val_batches else _has_validation(trainer)
        names = [f"train/{name}" for name in (*pl_module.metric_names, *_TRAINING)]
        names += [f"val/{name}" for name in pl_module.metric_names] if validates else []
        for callback, monitor in followers(trainer):
            if monitor in names or monitor in _PROGRESS or self._may_be_logged(trainer, monitor):
                continue
            if any(isinstance(c, TrainingEvaluation) and c.reports(monitor) for c in callbacks_of(trainer)):
                continue
            which = f"{type(callback).__name__} follows {monitor!r}"
            if monitor.startswith("val/") and not validates:
                raise ValueError(f"{which}, and there is no validation: set data.validation or data.holdout")
            close = difflib.get_close_matches(monitor, names, 3, 0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{which}, which this run will not report{hint}\nIt reports {', '.join(names)}")

    def _may_be_logged(self, trainer: Trainer, monitor: str) -> bool:
        """Return whether a callback of the user's own may log a metric."""
        is_ours = monitor.startswith(("val/", "train/", "eval/"))
        return not is_ours and any(
            not type(other).__module__.startswith(_LIBRARIES) for other in callbacks_of(trainer)
        )


def _has_validation(trainer: Trainer) -> bool:
    data = getattr(trainer, "datamodule", None)
    limit = trainer.limit_val_batches
    return bool(limit) and "validation" in getattr(data, "splits", {})


def followers(trainer: Trainer) -> Iterator[tuple[Callback, str]]:
    """Yield the callbacks of a user's that follow a metric, with its name."""
    for callback in callbacks_of(trainer):
        follows = isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None
        if follows and not isinstance(callback, Checkpoints):
            yield callback, str(callback.monitor)


def check_best(trainer: Trainer) -> None:
    """Raise unless a callback says by which metric a checkpoint is the best.

    Raises:
        ValueError: there is none, or the model is sharded, whose checkpoints are not read back.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise ValueError("export.which is 'best', which is not possible with trainer.strategy fsdp; take consolidate")
    if not any(isinstance(callback, ModelCheckpoint) for callback, _ in followers(trainer)):
        raise ValueError(
            "export.which is 'best', and no callback says by which metric: add a ModelCheckpoint with a monitor to "
            "trainer.callbacks"
        )


def load_best(trainer: Trainer, module: LitModule) -> str:
    """Load the weights of the best checkpoint, and return a phrase on what it is the best of.

    Raises:
        ValueError: none has been saved.
    """
    callback, monitor = next(
        (callback, monitor) for callback, monitor in followers(trainer) if isinstance(callback, ModelCheckpoint)
    )
    if not callback.best_model_path:
        raise ValueError(f"export.which is 'best', but no checkpoint has been saved for {monitor}")
    checkpoint = AtomicCheckpointIO().load_checkpoint(callback.best_model_path)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    score = callback.best_model_score
    value = "" if score is None else f" = {float(score):.6g}"
    return f"the best by {monitor}{value}, of step {checkpoint['global_step']}"
