"""What TensorBoard shows of a run: curves of what changes, one layout for all runs, settings in the HParams tab."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from lit_align.comparison.runs import flatten
from lit_align.compat.torch import event_file_writer
from lit_align.errors import without_secrets

CONSTANTS = re.compile(
    r"(val|test)/lengths/(chosen|rejected|gap|truncated|longer_wins|chosen_is/\w+)|samples/reference/.+|train/beta/effective"
)
"""Metrics that are the same in every report: properties of the data and of the reference."""
HIDDEN_NAME, EVENT_NAME = "events.out.tf-events.", "events.out.tfevents."
"""Beginnings of the names of event files: of those that were moved aside, and of those that TensorBoard looks for."""
_SAMPLES = {
    "score": ["samples/policy/score"],
    "length (tokens)": ["samples/policy/length/.*"],
    "ended and distinct": ["samples/policy/eos_rate", "samples/policy/distinct"],
}
_OF_PAIRS = {
    "loss": {
        "loss": ["train/loss", "val/loss"],
        "accuracy": ["train/rewards/accuracies", "val/rewards/accuracies"],
        "gradient norm": ["train/grad_norm"],
    },
    "rewards": {
        "training": ["train/rewards/(chosen|rejected|margins)"],
        "validation": ["val/rewards/(chosen|rejected|margins)"],
    },
    "lengths": {
        "accuracy by length": ["val/rewards/accuracies/chosen_.*"],
        "correlation of margin and length gap": ["(train|val)/lengths/margin_correlation"],
    },
}
LAYOUTS_OF_TASKS = {
    "preference": {
        **_OF_PAIRS,
        "displacement": {
            "share that lost probability": ["val/displacement/(chosen|rejected)/fell"],
            "mean log-prob of a token": ["val/log_probs/(chosen|rejected)/mean"],
        },
        "samples": _SAMPLES,
    },
    "reward": _OF_PAIRS,
    "online": {
        "score": {"score": ["(train|val)/score"], "reward": ["(train|val)/reward"]},
        "lengths": {"length (tokens)": ["(train|val)/length"], "ended": ["(train|val)/eos_rate"]},
        "displacement": {"KL to the reference": ["(train|val)/kl"], "entropy": ["(train|val)/entropy"]},
        "samples": _SAMPLES,
    },
}
"""Task → category → chart → tags, of the tab Custom Scalars."""
EVALUATION_LAYOUT = {
    "judge": {"win rate": ["eval/win_rate(/length_controlled)?"], "score": ["eval/score"]},
    "prompts": {"length (tokens)": ["eval/length/tokens"], "KL to the reference": ["eval/kl"]},
    "pairs": {"accuracy of pairs": ["eval/pairs/accuracy/(sum|mean)"]},
    "tasks": {"benchmarks": ["eval/benchmark/.*"]},
}
"""Key of ``evaluation`` → the charts that it fills, in a category of their own."""
HPARAM_METRICS = {
    "preference": ("val/loss", "val/rewards/accuracies", "val/rewards/margins", "samples/policy/score"),
    "reward": ("val/loss", "val/rewards/accuracies", "val/calibration/ece"),
    "online": ("val/score", "val/kl", "val/matching/d2", "samples/policy/score"),
}
"""Columns of the tab HParams beside the settings, by the task of a run."""
HPARAMS = re.compile(
    r"task|seed_everything|model\.(policy|objective|reference|lora|optimizer|optimizer\.(lr|weight_decay)|schedule|score)"
    r"|model\.(objective|lora|settings)\..+|data\.(train|batch_size|max_length)"
    r"|trainer\.(max_steps|max_epochs|precision|accumulate_grad_batches|gradient_clip_val)"
)
"""Settings in the tab HParams."""
_LONGEST = 60


class RunTensorBoard(TensorBoardLogger):
    """Writes event files into the run's folder itself, by which TensorBoard names the run.

    What never changes is no curve but a table among the texts, ``constants``.

    Args:
        folder: of the run.
        settings: of the run, as in ``config.yaml``.
        starts_anew: whether the run goes on from no checkpoint; one that does goes on where its event files lie.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], starts_anew: bool = False) -> None:
        goes_on = not starts_anew and (folder / "tensorboard").is_dir()
        super().__init__(folder, name="", version="tensorboard" if goes_on else "")
        self.settings = settings
        self._constants: dict[str, float] = {}
        self._described = False

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._described:
            self._described = True
            self._describe()
        constants = {name: float(value) for name, value in metrics.items() if CONSTANTS.fullmatch(name)}
        if not constants.items() <= self._constants.items():
            self._constants |= constants
            self.experiment.add_text("constants", markdown_of(self._constants), step)
        super().log_metrics({name: value for name, value in metrics.items() if name not in constants}, step)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the settings of the run are written with its first numbers."""

    @override
    @rank_zero_only
    def save(self) -> None:
        """Write no ``hparams.yaml``: ``config.yaml`` describes the run."""

    def _describe(self) -> None:
        """Write the layout, and the settings for the tab HParams."""
        task = str(self.settings.get("task", "preference"))
        self.experiment.add_custom_scalars(
            {
                group: {chart: ["Multiline", [f"{tag}$" for tag in tags]] for chart, tags in charts.items()}
                for group, charts in layout_of(self.settings).items()
            }
        )
        shown = dict.fromkeys(HPARAM_METRICS[task], 0.0)
        for summary in hparams(hparams_of(self.settings), shown):
            event_file_writer(self.experiment).add_summary(summary)


def layout_of(settings: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return the charts of a run by category: those of its task, without samples that it does not take.

    Args:
        settings: of the run, as in ``config.yaml``.
    """
    flat = flatten(settings)
    layout = dict(LAYOUTS_OF_TASKS[str(flat.get("task", "preference"))])
    if flat.get("samples.count") == 0:
        layout.pop("samples", None)
    evaluated = [charts for key, charts in EVALUATION_LAYOUT.items() if flat.get(f"evaluation.{key}") is not None]
    if evaluated:
        layout["evaluation"] = {chart: tags for charts in evaluated for chart, tags in charts.items()}
    return layout


def hparams_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted key → value of the settings that the tab HParams shows, those that are set and short.

    >>> hparams_of({"model": {"policy": "x", "lora": None}, "data": {"train": ["a", "b"]}, "run": "y"})
    {'model.policy': 'x', 'data.train': "['a', 'b']"}
    """
    flat = {key: value for key, value in flatten(settings).items() if HPARAMS.fullmatch(key)}
    plain = {
        key: value if isinstance(value, bool | int | float) else without_secrets(str(value))
        for key, value in flat.items()
        if value is not None
    }
    return {key: value for key, value in plain.items() if len(str(value)) <= _LONGEST}


def markdown_of(numbers: Mapping[str, float]) -> str:
    """Return a table of numbers in Markdown."""
    return "\n".join(
        ["| metric | value |", "|---|---|", *(f"| {name} | {value:.6g} |" for name, value in numbers.items())]
    )
