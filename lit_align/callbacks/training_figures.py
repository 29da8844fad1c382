"""Figures of a run while it trains: curves, length against score, margins by length, calibration."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lit_align.callbacks.loggers import show_figures
from lit_align.comparison.numbers import training_plane
from lit_align.comparison.runs import METRICS, Curve, Run, curves_of
from lit_align.comparison.tables import words_for
from lit_align.compat.lightning import writes_files
from lit_align.evaluation.record import read_jsonl
from lit_align.metrics.calibration import Reliability
from lit_align.modules import LitModule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = "#0072b2", "#d55e00", "#8c8c8c", "#009e73"
"""Colours of Okabe and Ito; blue is chosen and orange is rejected, as in the figures of the data."""
PANELS: tuple[tuple[str, Mapping[str, tuple[str, str]]], ...] = (
    ("loss", {"loss": ("loss", GREEN)}),
    ("rewards", {"rewards/chosen": ("chosen", BLUE), "rewards/rejected": ("rejected", ORANGE)}),
    (
        "reward accuracy",
        {
            "rewards/accuracies": ("all pairs", GREEN),
            "rewards/accuracies/chosen_much_longer": ("chosen is twice as long", BLUE),
            "rewards/accuracies/chosen_much_shorter": ("chosen is half as long", ORANGE),
            "lengths/longer_wins": ("the rule “longer wins”", GREY),
        },
    ),
    (
        "mean log-prob of a token",
        {"log_probs/chosen/mean": ("chosen", BLUE), "log_probs/rejected/mean": ("rejected", ORANGE)},
    ),
    (
        "share of responses that lost probability",
        {"displacement/chosen/fell": ("chosen", BLUE), "displacement/rejected/fell": ("rejected", ORANGE)},
    ),
    ("reward margin and length gap", {"lengths/margin_correlation": ("Pearson’s r", GREEN)}),
)
"""Title of a panel → metric → its label and colour."""
ONLINE_PANELS: tuple[tuple[str, Mapping[str, tuple[str, str]]], ...] = (
    ("score", {"score": ("score", GREEN)}),
    ("length (tokens)", {"length": ("length", BLUE)}),
    ("KL to the reference (nats)", {"kl": ("KL", ORANGE)}),
    ("entropy (nats)", {"entropy": ("entropy", BLUE)}),
    ("share that ended", {"eos_rate": ("ended", GREEN)}),
    ("matching divergence", {"matching/d2": ("D2", ORANGE)}),
)
LEAST_VALIDATIONS = 3
"""Figures are drawn from the third validation on: there is no curve before it."""
SHARE_OF_TIME = 0.05
"""Most of the time of a run that is spent on figures."""


class TrainingFigures(Callback):
    """Draws figures into ``figures/`` of the run's folder, and shows them as images in the loggers.

    TensorBoard, Weights & Biases and MLflow show images.
    ``curves.png`` has six panels, ``length_score.png`` the way of the samples through the plane of length and score,
    ``margins.png`` the reward margins by length, ``calibration.png`` how often the sides that a policy's rewards
    prefer are the preferred ones. They are drawn after validations, as long as that takes at most 5 % of the time, and
    at the end of training; a run with fewer than three validations has none.
    """

    def __init__(self) -> None:
        self._drawn_at = 0.0
        self._seconds = 1.0
        self._step = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._drawn_at = time.monotonic()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        waited = time.monotonic() - self._drawn_at
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._seconds <= SHARE_OF_TIME * waited:
            self._draw(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        root = Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not writes_files(trainer) or self._step == trainer.global_step:
            return
        start = time.monotonic()
        curves = curves_of(read_jsonl(root / METRICS))
        validations = [len(curve) for name, curve in curves.items() if name.startswith("val/")]
        if max(validations, default=0) < LEAST_VALIDATIONS:
            return
        self._step = trainer.global_step
        margins = module.margins if isinstance(module, LitModule) else {}
        draw_training(root / "figures", root.name, curves, margins)
        for logger in trainer.loggers:
            show_figures(logger, root / "figures", trainer.global_step)
        self._drawn_at = time.monotonic()
        self._seconds = self._drawn_at - start


def draw_training(folder: Path, name: str, curves: Mapping[str, Curve], margins: Mapping[str, Any]) -> list[Path]:
    """Draw what there is to draw of a run, and return the files.

    Args:
        folder: for the figures; it is made.
        name: of the run.
        curves: metric → step → value.
        margins: of the last validation, as ``MarginsByLength`` returns them; empty without any.
    """
    from matplotlib import rc_context

    from lit_align.metrics.figures import draw_margins, draw_reliability

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "curves.png"]
    with rc_context({**LOOK}):
        draw_curves(name, curves).savefig(files[0])
    files += draw_length_score(folder / "length_score.png", name, curves)
    if any(bucket["pairs"] for bucket in margins.get("buckets", {}).values()):
        files.append(draw_margins(margins, folder / "margins.png"))
        reliability = Reliability(torch.tensor(margins["reliability"], dtype=torch.float64))
        files.append(draw_reliability(reliability, float(reliability.error()), folder / "calibration.png"))
    return files


LOOK: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 90,
}
"""Settings of matplotlib for the curves."""


def draw_curves(label: str, curves: Mapping[str, Curve]) -> Figure:
    """Draw six panels: lines with dots are validation, thin lines training."""
    from matplotlib.figure import Figure

    panels = ONLINE_PANELS if "train/score" in curves else PANELS
    figure = Figure(figsize=(10, 5.4))
    for axes, (title, lines) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        _panel(axes, title, lines, curves)
    figure.suptitle(f"{label}: validation with dots, training thin; over optimizer steps", parse_math=False)
    return figure


def _panel(axes: Axes, title: str, lines: Mapping[str, tuple[str, str]], curves: Mapping[str, Curve]) -> None:
    """Plot a panel, without metrics that the run does not have."""
    for name, (label, color) in lines.items():
        training, validation = curves.get(f"train/{name}", {}), curves.get(f"val/{name}", {})
        if len(lines) <= 2:
            axes.plot(list(training), list(training.values()), color=color, linewidth=0.7, alpha=0.5)
        if validation:
            steps, values = list(validation), list(validation.values())
            axes.plot(steps, values, color=color, linewidth=1.2, marker="o", ms=2.5, label=label)
    axes.set_title(title)
    if len(lines) > 1 and axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def draw_length_score(file: Path, name: str, curves: Mapping[str, Curve]) -> list[Path]:
    """Draw the way of a run through the plane of length and score, and return the file; nothing without both."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plane = training_plane([Run(name, file.parent, curves=curves)])
    if plane is None or len(plane.points) < 2:
        return []
    lengths, scores = [point.length for point in plane.points], [point.score for point in plane.points]
    with rc_context(LOOK):
        figure = Figure(figsize=(5, 4))
        axes = figure.subplots()
        axes.plot(lengths, scores, "-o", color=BLUE, ms=4, linewidth=1.2)
        for point in (plane.points[0], plane.points[-1]):
            place = (point.length, point.score)
            axes.annotate(f"step {point.step}", place, (4, 6), textcoords="offset points", fontsize=8)
        axes.set(xlabel=words_for(plane.length), ylabel=words_for(plane.score), title="length and score over training")
        figure.savefig(file)
    return [file]
