"""What modules share: how numbers are reported, and how sums that are under way pass through a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lit_align.models import Loading, LoRA
from lit_align.modules.step_totals import StepLedger, total_over_ranks

REFUSED_PRECISIONS = ("16-mixed", "16-true", "bf16-true")


def check_precision(precision: Any, loading: Loading, lora: LoRA | None) -> None:
    """Raise for a precision in which losses are not exact enough; warn where small steps are rounded away.

    Args:
        precision: of the trainer.
        loading: of what is trained.
        lora: its adapter, whose weights are float32 whatever those below are.

    Raises:
        ValueError: it is one of ``REFUSED_PRECISIONS``.
    """
    if precision in REFUSED_PRECISIONS:
        raise ValueError(
            f"trainer.precision {precision} is not exact enough here: take bf16-mixed; weights that an adapter is put "
            "on, and those of frozen models, may be in 16 bits (loading.dtype bfloat16)"
        )
    if lora is None:
        warn_of_rounding("model.loading", loading)


def warn_of_rounding(key: str, loading: Loading) -> None:
    """Warn if weights are in 16 bits that train as a whole.

    Args:
        key: where ``loading`` stands.
        loading: of what is trained.
    """
    if loading.dtype == "bfloat16":
        rank_zero_warn(
            f"{key}.dtype is bfloat16, and all weights train: a step below 1/256 of a weight is rounded away, so that "
            "at small learning rates hardly any weight moves. Take float32, with trainer.precision bf16-mixed"
        )


def report(module: LightningModule, stage: str, values: Mapping[str, Tensor], step: int) -> None:
    """Keep values that are equal on all ranks, and write them to the loggers of rank zero.

    Args:
        module: whose run it is.
        stage: prefix of the names.
        values: name to number.
        step: optimizer steps so far.
    """
    named = {f"{stage}/{name}": value for name, value in values.items()}
    shown = {name: value.float() for name, value in named.items()}
    if stage == "train":  # what `log_dict` comes to, without its accounting for means over an epoch
        module.trainer.callback_metrics.update(shown)
    else:
        module.log_dict(shown, logger=False)
    numbers = torch.stack([value.detach().to(module.device, torch.float64) for value in named.values()]).tolist()
    for logger in module.loggers:
        logger.log_metrics(dict(zip(named, numbers, strict=True)), step=step)


def prefixed(prefix: str, metric: Metric) -> dict[str, Tensor]:
    """The values of a metric under names that begin with a prefix.

    Args:
        prefix: without the stroke behind it.
        metric: computes name to number.
    """
    return {f"{prefix}/{name}": value for name, value in metric.compute().items()}


def sums_of(metric: Metric, ledger: StepLedger, strategy: Strategy) -> dict[str, Tensor]:
    """Sums over all ranks that a resumed run goes on from; every rank must ask.

    Args:
        metric: its states are sums.
        ledger: its tokens are a sum.
        strategy: of the run.
    """
    parts: dict[str, Any] = {"tokens": ledger.tokens, **metric.metric_state}
    return {name: total_over_ranks(value, strategy) for name, value in parts.items()}


def restore_sums(
    sums: Mapping[str, Tensor] | None, metric: Metric, ledger: StepLedger, module: LightningModule
) -> None:
    """Rank zero takes the sums of a checkpoint over; the others go on from nothing, so the totals are right.

    Args:
        sums: what ``sums_of`` gave; None for a checkpoint without them.
        metric: takes its states.
        ledger: takes its tokens.
        module: says on which rank and device this is.
    """
    if sums is None:
        return
    first = module.global_rank == 0
    ledger.resume(sums["tokens"] if first else torch.zeros_like(sums["tokens"]), int(sums["tokens"]))
    if first:
        for name in metric.metric_state:
            setattr(metric, name, sums[name].to(module.device))
