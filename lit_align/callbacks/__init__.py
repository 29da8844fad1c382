"""What watches a run: samples, progress, checkpoints, export, summary."""

from lit_align.callbacks.checkpointing.checkpoints import AtomicCheckpointIO, Checkpoints
from lit_align.callbacks.checkpointing.log_truncation import History
from lit_align.callbacks.checkpointing.resume_check import SameRun
from lit_align.callbacks.export import Export
from lit_align.callbacks.figures import Figures
from lit_align.callbacks.metrics_file import MetricsFile
from lit_align.callbacks.precompute import Precompute
from lit_align.callbacks.predictions import Predictions
from lit_align.callbacks.progress import Progress
from lit_align.callbacks.samples import Samples
from lit_align.callbacks.seeding import StepSeed
from lit_align.callbacks.stopping import GracefulStop
from lit_align.callbacks.summary import Summary
from lit_align.callbacks.watchdog import Watch

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Export",
    "Figures",
    "GracefulStop",
    "History",
    "MetricsFile",
    "Precompute",
    "Predictions",
    "Progress",
    "SameRun",
    "Samples",
    "StepSeed",
    "Summary",
    "Watch",
]
