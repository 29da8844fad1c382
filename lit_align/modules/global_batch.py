"""Objectives whose loss of a pair depends on other pairs: the pairs of several batches and all ranks as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_align.metrics import PairMetrics
from lit_align.metrics.margins import MarginsByLength
from lit_align.objectives.base import Objective
from lit_align.types import LossOutput, Outcome, PairBatch, PairLogProbs, RecordT, map_tensors

INDEX = "index"
POLICY = "policy"


def evaluate_globally(
    objective: Objective,
    logps: Sequence[PairLogProbs],
    batches: Sequence[PairBatch],
    trainer: Trainer,
    with_grad: bool = True,
) -> list[LossOutput]:
    r"""Call the objective once with the pairs of all batches and ranks.

    Every rank must call this with its own batches. Pairs are ordered by their index, whatever batch or rank they come
    from; copies of weight 0 are left out.

    Args:
        objective: the objective.
        logps: log-probabilities of each of this rank's batches.
        batches: this rank's batches; at least one.
        trainer: of the run.
        with_grad: also compute the gradient with respect to the policy's log-probabilities; zeros otherwise.

    Returns:
        The output of each batch. ``loss`` is $\sum_t g_t\log\pi_t$ with the gradient g held constant: a surrogate
        whose gradient is that of the loss of all pairs with respect to this batch.
    """
    own = _concatenate([_tensors(record) for record in logps])
    weight = torch.cat([batch.weight for batch in batches])
    counted = weight > 0
    own |= {INDEX: torch.cat([batch.index for batch in batches]), "weight": weight}
    pairs, first = _gather_over_ranks({name: value[counted].detach() for name, value in own.items()}, trainer)
    order = pairs.pop(INDEX).argsort(stable=True)
    places = order.argsort()[first : first + int(counted.sum())]
    with torch.inference_mode(False), torch.set_grad_enabled(with_grad):
        leaf = own[POLICY].detach().clone().requires_grad_(with_grad)
        pairs = {name: value[order].clone() for name, value in pairs.items()}
        weights = pairs.pop("weight")
        if with_grad:
            padded = F.pad(leaf[counted], (0, pairs[POLICY].shape[-1] - leaf.shape[-1]))
            pairs[POLICY] = pairs[POLICY].index_copy(0, places, padded)
        outcome = objective(_record(pairs, logps[0].state))
        grad = torch.autograd.grad((outcome.loss * weights).sum(), leaf)[0] if with_grad else torch.zeros_like(leaf)
    rows = torch.zeros_like(weight, dtype=torch.long).masked_scatter(counted, places)
    ends = [0, *accumulate(len(batch.index) for batch in batches)]
    outputs = []
    for start, end, record in zip(ends, ends[1:], logps, strict=False):
        own_grad = grad[start:end, :, : record.policy.shape[-1]].contiguous()
        own_outcome = map_tensors(outcome, partial(_select, rows=rows[start:end]))
        loss = (record.policy * own_grad).sum()
        outputs.append(LossOutput(loss, map_tensors(record, torch.detach), own_grad, own_outcome))
    return outputs


def _select(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.detach()[rows]


# ── records as named tensors ────────────────────────────────────────────────────────────────────────────────────────


def _tensors(logps: PairLogProbs) -> dict[str, Tensor]:
    """Return every tensor of a record by its dotted name."""
    tensors: dict[str, Tensor] = {}
    for field in fields(logps):
        value = getattr(logps, field.name)
        if isinstance(value, Tensor):
            tensors[field.name] = value
        elif isinstance(value, PairLogProbs):
            tensors |= {f"{field.name}.{name}": inner for name, inner in _tensors(value).items()}
    return tensors


def _record(tensors: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> PairLogProbs:
    """Rebuild the record that ``_tensors`` took apart."""
    plain = {name: value for name, value in tensors.items() if "." not in name}
    outer = dict.fromkeys(name.split(".")[0] for name in tensors if "." in name)
    inner = {
        name: _record(
            {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}, {}
        )
        for name in outer
    }
    parts: dict[str, Any] = {"reference": None, **plain, **inner}
    return PairLogProbs(**parts, state=running)


def _concatenate(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the pairs of several records, padding those with fewer tokens."""
    return {name: torch.cat(_pad_to_widest([part[name] for part in parts])) for name in parts[0]}


def _pad_to_widest(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[0].dim() < 3:
        return list(tensors)
    width = max(tensor.shape[-1] for tensor in tensors)
    return [F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors]


def _gather_over_ranks(own: Mapping[str, Tensor], trainer: Trainer) -> tuple[dict[str, Tensor], int]:
    """Return the pairs of all ranks, those of rank 0 first, and the position of this rank's first pair."""
    if trainer.world_size == 1:
        return dict(own), 0
    strategy, device = trainer.strategy, trainer.strategy.root_device
    sizes = torch.tensor([[len(part), part.shape[-1]] for part in own.values()], device=device)
    everyone = strategy.all_gather(sizes).tolist()
    gathered: list[dict[str, Tensor]] = [{} for _ in everyone]
    for number, (name, part) in enumerate(own.items()):
        rows, width = (max(sizes[number][axis] for sizes in everyone) for axis in (0, 1))
        whole = part.new_zeros((rows, *part.shape[1:-1], width) if part.dim() == 3 else (rows, *part.shape[1:]))
        whole[tuple(slice(size) for size in part.shape)] = part
        shares = strategy.all_gather(_sendable(whole).to(device)).to(part.device, part.dtype)
        for rank, sizes_of in enumerate(everyone):
            gathered[rank][name] = shares[rank][: sizes_of[number][0]]
    first = sum(sizes_of[0][0] for sizes_of in everyone[: trainer.global_rank])
    return _concatenate(gathered), first


def _sendable(tensor: Tensor) -> Tensor:
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor


class Evaluation:
    """Accumulates the metrics of an objective over all pairs of a split.

    Where a pair's loss depends on other pairs, the log-probabilities of all pairs are kept in CPU memory and evaluated
    together at the end, so that the result does not depend on the batches.

    Args:
        objective: the objective.
        metrics: accumulates what it returns.
        margins: counts its reward margins.
    """

    def __init__(self, objective: Objective, metrics: PairMetrics, margins: MarginsByLength) -> None:
        self.objective = objective
        self.metrics = metrics
        self.margins = margins
        self.last_margins: dict[str, Any] = {}
        self._kept: list[tuple[PairLogProbs, PairBatch]] = []

    def reset(self) -> None:
        """Discard what an interrupted evaluation has left."""
        self._kept = []
        self.metrics.reset()
        self.margins.reset()

    def update(self, logps: PairLogProbs, batch: PairBatch) -> None:
        """Add the pairs of a batch."""
        if self.objective.needs.batch_level:
            self._kept.append((moved(logps, "cpu"), moved(_without_ids(batch), "cpu")))
        else:
            self._add(self.objective(logps), logps, batch)

    def _add(self, outcome: Outcome, logps: PairLogProbs, batch: PairBatch) -> None:
        self.metrics.update(outcome, logps, batch)
        self.margins.update(outcome.rewards, logps.mask.sum(-1), batch.weight)

    def compute(self, trainer: Trainer, device: torch.device) -> dict[str, Tensor]:
        """Return the means over the pairs of all ranks, and reset."""
        if self._kept:
            logps, batches = [logps for logps, _ in self._kept], [batch for _, batch in self._kept]
            outputs = evaluate_globally(self.objective, logps, batches, trainer, with_grad=False)
            for output, batch in zip(outputs, batches, strict=True):
                assert output.outcome is not None
                self._add(moved(output.outcome, device), moved(output.logps, device), moved(batch, device))
        values: dict[str, Tensor] = self.metrics.compute()
        self.last_margins = self.margins.compute()
        self.reset()
        return values


def moved(record: RecordT, device: torch.device | str) -> RecordT:
    """Detach all tensors of a record and move them to a device."""
    return map_tensors(record, lambda part: part.detach().to(device))


def _without_ids(batch: PairBatch) -> PairBatch:
    """Return the parts of a batch that metrics and the order of pairs depend on."""
    empty = {name: getattr(batch, name)[..., :0].clone() for name in ("input_ids", "attention_mask", "mask")}
    return replace(batch, **empty, prompted=None, mismatched=None, packing=None, host=None)
