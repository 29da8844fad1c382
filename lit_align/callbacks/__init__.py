"""Callbacks of a run, in the order in which Lightning calls them.

1. ``ResumeCheck`` refuses a checkpoint of other settings before anything of it is used.
2. ``MonitorCheck`` refuses to follow a metric that will not exist; ``StepSeed`` seeds each batch before anything draws
   random numbers in it; ``FinalValidation`` asks for a validation behind the last step.
3. ``Precompute`` computes the log-probabilities of a frozen reference before the first step.
4. ``LogTruncation`` removes the lines behind the restored step before a callback writes new ones.
5. ``Figures`` and ``Predictions`` write what an evaluation or a prediction has gathered.
6. ``Watchdog`` reports a process that hangs; ``ProgressBar`` shows the last reported numbers.
7. Callbacks from ``trainer.callbacks``.
8. ``Samples``, ``TrainingEvaluation``, ``Export`` and ``HubPush``, which have configuration keys of their own.
9. ``TrainingFigures`` draws what the others have written; ``GracefulStop`` ends a run on SIGTERM or Ctrl-C after the
   others have finished the step; ``Summary`` prints what they did.
10. ``SaveConfig`` of ``lit_align.cli.run`` writes ``config.yaml``.
11. ``Checkpoints``: Lightning calls callbacks that save checkpoints last, so that they save the state of all others.
"""

from lightning.pytorch import Callback

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, Checkpoints
from lit_align.callbacks.checkpointing.log_truncation import LogTruncation
from lit_align.callbacks.checkpointing.resume_check import ResumeCheck
from lit_align.callbacks.evaluation import TrainingEvaluation
from lit_align.callbacks.export import Export
from lit_align.callbacks.hub import HubError, HubPush
from lit_align.callbacks.loggers import run_loggers
from lit_align.callbacks.monitors import MonitorCheck
from lit_align.callbacks.precompute import Precompute
from lit_align.callbacks.run_files import Figures, MetricsFile, Predictions
from lit_align.callbacks.samples import Samples
from lit_align.callbacks.summary import Summary
from lit_align.callbacks.tensorboard import RunTensorBoard
from lit_align.callbacks.training_figures import TrainingFigures
from lit_align.callbacks.training_loop import (
    FinalValidation,
    GracefulStop,
    NotebookProgressBar,
    ProgressBar,
    StepSeed,
)
from lit_align.callbacks.watchdog import Watchdog

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Export",
    "Figures",
    "FinalValidation",
    "GracefulStop",
    "HubError",
    "HubPush",
    "LogTruncation",
    "MetricsFile",
    "MonitorCheck",
    "NotebookProgressBar",
    "Precompute",
    "Predictions",
    "ProgressBar",
    "ResumeCheck",
    "RunTensorBoard",
    "Samples",
    "StepSeed",
    "Summary",
    "TrainingEvaluation",
    "TrainingFigures",
    "Watchdog",
    "first_callbacks",
    "last_callbacks",
    "run_loggers",
]


def first_callbacks(seed: int, shows_progress: bool) -> list[Callback]:
    """Return the callbacks of every run that come before those of the user, but for ``ResumeCheck``."""
    callbacks: list[Callback] = [MonitorCheck(), StepSeed(seed), FinalValidation(), Precompute(), LogTruncation()]
    callbacks += [Figures(), Predictions(), Watchdog()]
    return [*callbacks, ProgressBar()] if shows_progress else callbacks


def last_callbacks() -> list[Callback]:
    """Return the callbacks of every run that come after those of the user."""
    return [TrainingFigures(), GracefulStop(), Summary()]
