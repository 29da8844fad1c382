"""A union is the pairs of several batches and of all ranks as one record, for objectives that look across pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn import functional as F

from lit_align.metrics import PairMetrics
from lit_align.objectives.base import Objective
from lit_align.types import Margin, Outcome, PairBatch, PairLogProbs, PairTokens

Kind = TypeVar("Kind")

INDEX = "index"
POLICY = "policy"


@dataclass(frozen=True)
class Judged:
    """What an objective made of one batch among all the others.

    Args:
        outcome: of the batch's own pairs.
        pull: gradient of the weighted sum of all losses with regard to the batch's own ``logps.policy``; None where no
            gradient was asked for.
    """

    outcome: Outcome
    pull: PairTokens | None


def judge(
    objective: Objective,
    logps: Sequence[PairLogProbs],
    batches: Sequence[PairBatch],
    trainer: Trainer,
    pulls: bool = True,
) -> list[Judged]:
    """Call the objective once with the pairs of all batches and ranks; every rank must come here with its own.

    The pairs stand in the order of their index, whatever batch or rank they are from; copies of weight 0 are left out.

    Args:
        objective: what is optimised.
        logps: log-probabilities of each of this rank's batches.
        batches: the batches; at least one.
        trainer: of the run.
        pulls: also differentiate.
    """
    own = _joined([_tensors(one) for one in logps])
    weight = torch.cat([batch.weight for batch in batches])
    counted = weight > 0
    own |= {INDEX: torch.cat([batch.index for batch in batches]), "weight": weight}
    union, first = _over_ranks({name: value[counted].detach() for name, value in own.items()}, trainer)
    order = union.pop(INDEX).argsort(stable=True)
    places = order.argsort()[first : first + int(counted.sum())]
    with torch.inference_mode(False), torch.set_grad_enabled(pulls):
        leaf = own[POLICY].detach().clone().requires_grad_(pulls)
        everyone = {name: value[order].clone() for name, value in union.items()}
        weights = everyone.pop("weight")
        if pulls:
            mine = F.pad(leaf[counted], (0, everyone[POLICY].shape[-1] - leaf.shape[-1]))
            everyone[POLICY] = everyone[POLICY].index_copy(0, places, mine)
        outcome = objective(_record(everyone, logps[0].running))
        pull = torch.autograd.grad((outcome.loss * weights).sum(), leaf)[0] if pulls else None
    back = torch.zeros_like(weight, dtype=torch.long).masked_scatter(counted, places)
    ends = [0, *accumulate(len(batch.index) for batch in batches)]
    found = []
    for start, end, one in zip(ends, ends[1:], logps, strict=False):
        width = one.policy.shape[-1]
        found.append(
            Judged(_rows(outcome, back[start:end]), None if pull is None else pull[start:end, :, :width].contiguous())
        )
    return found


def judge_alone(objective: Objective, logps: PairLogProbs, weight: Margin) -> Judged:
    """What an objective makes of pairs that do not depend on others.

    Args:
        objective: what is optimised.
        logps: of the pairs; not differentiated further than to them.
        weight: of the pairs.
    """
    leaf = logps.policy.detach().requires_grad_()
    outcome = objective(replace(logps, policy=leaf))
    total = (outcome.loss * weight).sum()
    pull = torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(leaf)
    return Judged(replace(outcome, loss=outcome.loss.detach()), pull)


def moved(part: Kind, device: torch.device | str) -> Kind:
    """A tensor, or a record with everything in it, without gradient on another device.

    Args:
        part: a tensor, a mapping, or a dataclass of these.
        device: where to.
    """
    found: Any = part
    if isinstance(part, Tensor):
        found = part.detach().to(device)
    elif isinstance(part, Mapping):
        found = {name: moved(value, device) for name, value in part.items()}
    elif is_dataclass(part) and not isinstance(part, type):
        found = replace(part, **{field.name: moved(getattr(part, field.name), device) for field in fields(part)})
    return cast(Kind, found)


def _rows(outcome: Outcome, rows: Tensor) -> Outcome:
    """Some pairs of an outcome, detached."""

    def of(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: of(value) for name, value in part.items()}
        return None if part is None else part.detach()[rows]

    return Outcome(**{field.name: of(getattr(outcome, field.name)) for field in fields(Outcome)})


# ── records as named tensors ────────────────────────────────────────────────────────────────────────────────────────


def _tensors(logps: PairLogProbs) -> dict[str, Tensor]:
    """Every tensor of a record by its dotted name."""
    found: dict[str, Tensor] = {}
    for field in fields(logps):
        value = getattr(logps, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value
        elif isinstance(value, PairLogProbs):
            found |= {f"{field.name}.{name}": inner for name, inner in _tensors(value).items()}
    return found


def _record(tensors: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> PairLogProbs:
    """The record that ``_tensors`` took apart."""
    plain = {name: value for name, value in tensors.items() if "." not in name}
    outer = dict.fromkeys(name.split(".")[0] for name in tensors if "." in name)
    inner = {
        name: _record(
            {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}, {}
        )
        for name in outer
    }
    parts: dict[str, Any] = {"reference": None, **plain, **inner}
    return PairLogProbs(**parts, running=running)


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The pairs of several records, one behind the other; those with fewer tokens get padding."""
    return {name: torch.cat(_level([part[name] for part in parts])) for name in parts[0]}


def _level(tensors: Sequence[Tensor]) -> list[Tensor]:
    if tensors[0].dim() < 3:
        return list(tensors)
    width = max(tensor.shape[-1] for tensor in tensors)
    return [F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors]


def _over_ranks(own: Mapping[str, Tensor], trainer: Trainer) -> tuple[dict[str, Tensor], int]:
    """The pairs of all ranks, those of rank 0 first, and the position of the first of this rank's."""
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
    return _joined(gathered), first


def _sendable(tensor: Tensor) -> Tensor:
    return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor


class Evaluation:
    """The pairs of an evaluation, batch after batch.

    Where a pair's loss depends on the others, the log-probabilities of all pairs are kept in the processor's memory
    and judged together at the end, so the numbers do not depend on the batches either.

    Args:
        objective: what is evaluated.
        metrics: what sums it up.
    """

    def __init__(self, objective: Objective, metrics: PairMetrics) -> None:
        self.objective = objective
        self.metrics = metrics
        self._kept: list[tuple[PairLogProbs, PairBatch]] = []

    def begin(self) -> None:
        """Forget what an evaluation that broke off has left."""
        self._kept = []
        self.metrics.reset()

    def add(self, logps: PairLogProbs, batch: PairBatch) -> None:
        """Take a batch in."""
        if self.objective.needs.batch_level:
            self._kept.append((moved(logps, "cpu"), moved(_without_ids(batch), "cpu")))
        else:
            self.metrics.update(self.objective(logps), logps, batch)

    def close(self, trainer: Trainer, device: torch.device) -> dict[str, Tensor]:
        """The means over the pairs of all ranks.

        Args:
            trainer: of the run.
            device: where the metrics are.
        """
        if self._kept:
            logps, batches = [one for one, _ in self._kept], [batch for _, batch in self._kept]
            judged = judge(self.objective, logps, batches, trainer, pulls=False)
            for found, one, its in zip(judged, logps, batches, strict=True):
                self.metrics.update(moved(found.outcome, device), moved(one, device), moved(its, device))
        values: dict[str, Tensor] = self.metrics.compute()
        self.begin()
        return values


def _without_ids(batch: PairBatch) -> PairBatch:
    """What the metrics and the order of the pairs are made of."""
    nothing = {name: getattr(batch, name)[..., :0].clone() for name in ("input_ids", "attention_mask", "mask")}
    return replace(batch, **nothing, prompted=None, mismatched=None)
