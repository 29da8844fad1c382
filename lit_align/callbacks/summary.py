"""Prints a summary of a run before its first step and after its last."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.special import stdtrit
from typing_extensions import override

from lit_align import __version__
from lit_align.callbacks.checkpointing.checkpoints import checkpoint_folder
from lit_align.callbacks.export import Export
from lit_align.callbacks.model_card import describe, papers_of_run
from lit_align.callbacks.samples import Samples
from lit_align.callbacks.tensorboard import EVENT_NAME
from lit_align.compat.lightning import callbacks_of, unwrapped, writes_files
from lit_align.data import PreferenceData
from lit_align.locate import adapter_base
from lit_align.metrics.pair_values import SHARE
from lit_align.models import AdapterOff, MovingReference, Precomputed, SavedAdapter, SecondModel
from lit_align.models.logps.packing import LayoutName
from lit_align.models.quantization import count_weights
from lit_align.modules import LitModule
from lit_align.modules.optimizer import describe_groups
from lit_align.modules.step_totals import run_data
from lit_align.objectives.beta_scale import BetaReading
from lit_align.statistics import wilson

CallbackType = TypeVar("CallbackType", bound=Callback)

FINAL_METRICS = {
    "training loss": "train/loss",
    "prompts whose responses made a pair": "train/paired",
    "score of own responses": "train/score",
    "validation loss": "val/loss",
    "validation reward accuracy": "val/rewards/accuracies",
    "validation reward margin": "val/rewards/margins",
    "validation score": "val/score",
    "validation entropy (nats per response)": "val/entropy",
    "matching divergence, as Bernoulli KL": "val/matching/d2",
}
SAMPLE_NUMBERS = {"mean response length (tokens)": "length/mean", "ended by itself": "eos_rate", "mean score": "score"}
LAYOUTS: dict[LayoutName, str] = {
    "shared": "shared: a prompt is read once for both responses, without padding",
    "packed": "packed: every response is read with its prompt, without padding",
    "padded": "padded: one padded row per response",
    "plain": "plain: one padded row per response, with whole logits",
}


class Summary(Callback):
    """Prints objective, data, policy and reference when training starts, and the last numbers when it ends."""

    def __init__(self) -> None:
        self._layout: LayoutName | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run; length statistics of the data also go to ``data.json``."""
        if not trainer.is_global_zero or not isinstance(pl_module, LitModule):
            return
        console = Console(soft_wrap=True)
        console.print(f"[bold]objective[/]  {describe(pl_module.objective)}", highlight=False)
        for paper in papers_of_run(pl_module.objective, pl_module.reference):
            console.print(f"           {paper.citation()}", style="dim", highlight=False, markup=False)
        for reading in pl_module.betas:
            console.print(f"[bold]beta[/]       {_beta(reading)}", highlight=False)
        console.print(f"[bold]policy[/]     {_policy(pl_module)}", highlight=False)
        if pl_module.trains_policy:
            console.print(f"[bold]reference[/]  {_reference(pl_module)}", highlight=False)
        if pl_module.score is not None:
            console.print(f"[bold]score[/]      {describe(pl_module.score)}", highlight=False)
        console.print(f"[bold]steps[/]      {pl_module.planned_steps}", highlight=False)
        for optimizer in trainer.optimizers:
            console.print(f"[bold]optimizer[/]  {describe_groups(unwrapped(optimizer))}", highlight=False)
        console.print(f"[bold]folder[/]     {trainer.default_root_dir}", highlight=False)
        data = run_data(trainer)
        if isinstance(data, PreferenceData):
            console.print(f"[bold]batches[/]    {data.padding.line()}", highlight=False)
            _report_data(trainer, data)

    @override
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *step: Any) -> None:
        """Print the layout that batches are read in, once it has been chosen on the first one."""
        if self._layout is None and trainer.is_global_zero and isinstance(pl_module, LitModule):
            self._layout = pl_module.readers.layout(pl_module.trained_model)
            if self._layout is not None:
                Console(soft_wrap=True).print(f"[bold]layout[/]     {LAYOUTS[self._layout]}", highlight=False)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            Console().print(_evaluation(trainer, pl_module, "val"))

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            Console().print(_evaluation(trainer, pl_module, "test"))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last metrics, the samples' numbers before and after training, and where the files are."""
        if trainer.is_global_zero:
            console = Console(soft_wrap=True)
            console.print(_results(trainer))
            console.print(_file_locations(trainer), highlight=False)


def _report_data(trainer: Trainer, data: PreferenceData) -> None:
    """Write length statistics to ``data.json``, versions to ``environment.json``, histograms to TensorBoard."""
    if not writes_files(trainer):
        return
    root = Path(trainer.default_root_dir)
    root.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {split: lengths.as_dict() for split, lengths in data.lengths.items()}
    report["batches"] = data.padding.as_dict()
    report["chat_template"] = data.template_hash
    report["template_date"] = data.told_date
    (root / "data.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    environment = json.dumps(_environment(trainer), indent=2)
    (root / "environment.json").write_text(environment + "\n", encoding="utf-8")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for split, prepared in data.splits.items():
                _add_histograms(logger, f"{split} data", prepared.store.lengths)


def _environment(trainer: Trainer) -> dict[str, str]:
    """Return versions, device and processes of a run."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = ("transformers", "lightning", "peft", "datasets", "tokenizers", "numpy")
    return {
        "lit_align": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with its build, such as +cu130, which the metadata of a wheel may lack
        **{package: version(package) for package in packages},
        "system": platform.platform(),
        "device": f"{device.type} ({name})",
        "processes": str(trainer.world_size),
        "precision": str(trainer.precision),
        "threads": str(torch.get_num_threads()),
    }


def _add_histograms(logger: TensorBoardLogger, name: str, lengths: NDArray[np.int64]) -> None:
    """Add histograms of both sides and of chosen minus rejected; rows without tokens on a side are left out."""
    chosen, rejected = lengths.T
    both = (chosen > 0) & (rejected > 0)
    values = {"chosen": chosen[chosen > 0], "rejected": rejected[rejected > 0], "gap": (chosen - rejected)[both]}
    for label, numbers in values.items():
        if len(numbers):
            logger.experiment.add_histogram(f"{name}/{label}", numbers, 0)


def _evaluation(trainer: Trainer, module: LightningModule, stage: str) -> Table:
    """Return a table of the metrics, with 95 % intervals and the number of pairs or responses where they are known."""
    errors = module.standard_errors if isinstance(module, LitModule) else {}
    columns = ("", stage, *(("95 %", "n") if errors else ()))
    result = Table(*columns, title_justify="left")
    result.columns[0].overflow = "fold"  # no name loses its end
    for name, value in sorted(trainer.callback_metrics.items()):
        if name.startswith(f"{stage}/"):
            short = name.removeprefix(f"{stage}/")
            result.add_row(short, f"{float(value):.4f}", *_interval(short, float(value), errors))
    return result


def _interval(name: str, value: float, errors: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
    """Return interval and number for a row of the table; nothing where they are not known.

    Shares have Wilson's interval, means Student's.

    >>> _interval("loss", 0.5, {"loss": (100.0, 0.01)}), _interval("rewards/accuracies", 1.0, {})
    (('0.4802 to 0.5198', '100'), ())
    >>> _interval("lengths/chosen_is/longer", 0.0, {"lengths/chosen_is/longer": (10.0, 0.0)})
    ('0.0000 to 0.2775', '10')
    """
    if name not in errors:
        return ()
    count, error = errors[name]
    half = float(stdtrit(count - 1, 0.975)) * error if count > 1 else math.inf
    low, high = value - half, value + half
    if SHARE.fullmatch(name):
        share = wilson(value * count, round(count))
        low, high = share.low, share.high
    return f"{low:.4f} to {high:.4f}", f"{count:g}"


def _results(trainer: Trainer) -> Table:
    result = Table(title=f"after {trainer.global_step} steps", title_justify="left")
    for column in ("", "before", "after"):
        result.add_column(column, justify="left" if not column else "right")
    known = trainer.callback_metrics
    for label, name in FINAL_METRICS.items():
        if name in known:
            result.add_row(label, "", f"{float(known[name]):.4f}")
    for samples in _callbacks_of_type(trainer, Samples):
        for label, name in SAMPLE_NUMBERS.items():
            if name in samples.after:
                result.add_row(label, f"{samples.before[name]:.3f}", f"{samples.after[name]:.3f}")
    return result


def _file_locations(trainer: Trainer) -> str:
    """Return lines on the files that the run has written."""
    root = Path(trainer.default_root_dir)
    last = checkpoint_folder(root) / "last.ckpt"
    runs = root if root.parent.resolve() == Path.cwd() else root.parent
    logs = [(f"**/{EVENT_NAME}*", f"tensorboard --logdir {runs}"), ("metrics.jsonl", str(root / "metrics.jsonl"))]
    written = [text for pattern, text in logs if writes_files(trainer) and any(root.glob(pattern))]
    lines = [f"[bold]metrics[/]     {', '.join(written)}"] if written else []
    exports = _callbacks_of_type(trainer, Export)
    lines += [f"[bold]exported[/]    {export.folder}" for export in exports if export.folder]
    if not writes_files(trainer):
        return "nothing is written with trainer.fast_dev_run"
    lines += [f"[bold]samples[/]     {root / 'samples.jsonl'}"] if (root / "samples.jsonl").exists() else []
    lines += [f"[bold]checkpoint[/]  {last}   (go on with --ckpt_path last)"] if last.exists() else []
    return "\n".join(lines)


def _callbacks_of_type(trainer: Trainer, callback_type: type[CallbackType]) -> list[CallbackType]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, callback_type)]


def _policy(module: LitModule) -> str:
    model = module.trained_model
    total = sum(map(count_weights, model.parameters()))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    base = adapter_base(module.policy_name)
    name = module.policy_name if base is None else f"the adapter {module.policy_name} of {base}"
    return f"{name}: {total:,} parameters, {trained:,} trained, {module.loading.storage}"


def _beta(reading: BetaReading) -> str:
    term = f" of the term {reading.name}" if reading.name else ""
    return f"{reading.beta:g}{term}: {reading.at_sum_scale:.3g} at the scale of sums"


def _reference(module: LitModule) -> str:
    match module.reference:
        case None:
            return "none: the objective needs none"
        case AdapterOff():
            return "the policy with its adapter switched off"
        case SecondModel(path=None) if isinstance(module.lora, SavedAdapter):
            return "a frozen copy of the adapter as loaded, on the same base model"
        case SecondModel(path=None):
            return "a frozen copy of the policy as loaded"
        case SecondModel(path=path):
            return f"{path}, frozen"
        case MovingReference(every=every, mixing=mixing):
            return f"a copy of the policy that takes {mixing:g} of it every {every} steps"
        case Precomputed(path=path):
            return f"{path or 'the policy as loaded'}, its log-probs read from disk"
        case other:
            return repr(other)
