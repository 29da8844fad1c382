"""Reporting of metrics, and the sums that pass through a checkpoint so that a resumed run reports the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lit_align.models import Loading, LoRA, SavedAdapter
from lit_align.modules.step_totals import StepTotals, total_over_ranks

REFUSED_PRECISIONS = ("16-mixed", "16-true", "bf16-true")


def check_precision(precision: Any, loading: Loading, lora: LoRA | SavedAdapter | None) -> None:
    """Raise for a precision in which losses are not exact enough; warn where small updates are rounded away.

    Raises:
        ValueError: the precision is one of ``REFUSED_PRECISIONS``.
    """
    if precision in REFUSED_PRECISIONS:
        raise ValueError(
            f"trainer.precision {precision} is not exact enough here: take bf16-mixed; weights that an adapter is put "
            "on, and those of frozen models, may be in 16 bits (loading.dtype bfloat16)"
        )
    if lora is None:
        warn_of_rounding("model.loading", loading)


def warn_of_rounding(key: str, loading: Loading) -> None:
    """Warn if all weights are trained in 16 bits."""
    if loading.dtype == "bfloat16":
        rank_zero_warn(
            f"{key}.dtype is bfloat16, and all weights train: a step below 1/256 of a weight is rounded away, so that "
            "at small learning rates hardly any weight moves. Take float32, with trainer.precision bf16-mixed"
        )


def report(module: LightningModule, stage: str, values: Mapping[str, Tensor], step: int) -> None:
    """Give values, which must be equal on all ranks, to the callbacks and to the loggers of rank zero."""
    named = {f"{stage}/{name}": value for name, value in values.items()}
    shown = {name: value.float() for name, value in named.items()}
    if stage == "train":  # equivalent to `log_dict`, without its bookkeeping of epoch means
        module.trainer.callback_metrics.update(shown)
    else:
        module.log_dict(shown, logger=False)
    numbers = torch.stack([value.detach().to(module.device, torch.float64) for value in named.values()]).tolist()
    for logger in module.loggers:
        logger.log_metrics(dict(zip(named, numbers, strict=True)), step=step)


def prefixed(prefix: str, metric: Metric) -> dict[str, Tensor]:
    """Compute a metric and prefix the names of its values."""
    return {f"{prefix}/{name}": value for name, value in metric.compute().items()}


def sums_of(metrics: Mapping[str, Metric], step_totals: StepTotals, strategy: Strategy) -> dict[str, Tensor]:
    """Return the sums over all ranks that a resumed run continues from. Every rank must call this."""
    sums = {"tokens": step_totals.tokens}
    for prefix, metric in metrics.items():
        sums |= {f"{prefix}{name}": torch.as_tensor(getattr(metric, name)) for name in metric.metric_state}
    return {name: total_over_ranks(value, strategy) for name, value in sums.items()}


def restore_sums(
    sums: Mapping[str, Tensor] | None, metrics: Mapping[str, Metric], step_totals: StepTotals, module: LightningModule
) -> None:
    """Load the sums of a checkpoint on rank zero; other ranks start from zero, so that the totals are right."""
    if sums is None:
        return
    first = module.global_rank == 0
    step_totals.resume(sums["tokens"] if first else torch.zeros_like(sums["tokens"]), int(sums["tokens"]))
    if first:
        for prefix, metric in metrics.items():
            for name in metric.metric_state:
                setattr(metric, name, sums[f"{prefix}{name}"].to(module.device))
