"""An estimate says what a training step needs of each GPU, found by rehearsing the step without weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_align.models.layout_check import LADDER
from lit_align.models.log_probs import response_log_probs
from lit_align.models.sharding import layers, without_weights
from lit_align.models.value import response_values
from lit_align.modules import LitOnline, LitPreference, LitReward, Module
from lit_align.modules.draw import draw_in_evaluation
from lit_align.modules.portions import even_ends
from lit_align.plan.rehearsal import Step, give_shapes, rehearse, shapes_alone
from lit_align.types import PairBatch


@dataclass(frozen=True)
class Spread:
    """How a run is spread.

    Args:
        processes: GPUs, or processes without one.
        cut: weights, gradients and optimizer states are cut among them (fsdp); otherwise each has all.
        accumulate: micro-batches of an optimizer step.
        precision: ``32-true`` or ``bf16-mixed``.
        device: ``cuda``, where an optimizer takes all its steps at once, or ``cpu``.
    """

    processes: int = 1
    cut: bool = False
    accumulate: int = 1
    precision: str = "32-true"
    device: str = "cuda"


@dataclass(frozen=True)
class Memory:
    """Bytes in each GPU's memory when it holds most.

    Args:
        parameters: of what is trained, adapters and frozen layers below them included.
        gradients: of what is trained.
        optimizer: its states.
        frozen: models beside it: the reference, a reward model.
        activations: kept for the backward pass.
        head: what is above the layers: logits, their softmax, and what backward needs for a moment.
        communication: layers that are put together for a moment, and DDP's copy of the gradients.
        step: what the optimizer needs for a moment when the activations are gone, above all the other entries.
    """

    parameters: int
    gradients: int
    optimizer: int
    frozen: int
    activations: int
    head: int
    communication: int
    step: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        memory: of each GPU.
        operations: floating-point operations of each GPU and optimizer step.
        tokens: of all GPUs and each optimizer step, padding left out.
        trained: parameters that are trained.
        parameters: all parameters of what is trained, adapters and frozen layers included.
    """

    memory: Memory
    operations: int
    tokens: int
    trained: int
    parameters: int


def estimate(module: Module, batch: PairBatch, spread: Spread = Spread()) -> Estimate:
    """Rehearse a training step of a module that has no models yet; no weights are read, no memory is taken for them.

    Args:
        module: as it is built from the configuration.
        batch: the largest micro-batch that it will see.
        spread: how the run is spread.
    """
    mode = shapes_alone()
    if spread.cut and spread.precision == "bf16-mixed":  # cut weights are put together in 16 bits
        module.loading = replace(module.loading, dtype="bfloat16")
    with without_weights():
        module.configure_model()
    frozen = list(_frozen(module))
    for model in (module, *frozen):
        give_shapes(mode, model)
    part = _portion(module, batch, spread)
    whole = part is batch
    step = _rehearsed(mode, module, frozen, part, spread)
    taken = spread if whole else replace(spread, accumulate=max(2, spread.accumulate))
    tokens = [int(pairs.attention_mask.sum()) for pairs in (batch, part)]
    return Estimate(
        memory=_memory(module, frozen, step, taken),
        operations=step.operations * spread.accumulate * tokens[0] // tokens[1],
        tokens=int(batch.attention_mask.sum()) * spread.accumulate * spread.processes,
        trained=sum(p.numel() for p in _trained(module)),
        parameters=sum(p.numel() for p in module.parameters()),
    )


def _portion(module: Module, batch: PairBatch, spread: Spread) -> PairBatch:
    """What goes through the policy at once: the batch, or the largest of the portions that it is taken in."""
    most = 0
    if isinstance(module, LitPreference):
        most = module.sources.how.portion(spread.device, module.objective.across_pairs)
    sizes = batch.attention_mask.sum((1, 2)).tolist()
    if not 0 < most < sum(sizes) or len(sizes) == 1:
        return batch
    ends = even_ends(sizes, min(math.ceil(sum(sizes) / most), len(sizes)))
    return max((batch.rows(slice(*cut)) for cut in pairwise((0, *ends))), key=lambda found: int(found.mask.sum()))


def _rehearsed(mode: Any, module: Module, frozen: list[nn.Module], batch: PairBatch, spread: Spread) -> Step:
    """In the first layout that the model can be read in; a run tries the same ones, on real weights."""
    run = partial(rehearse, mode, module, frozen, partial(_loss, module, batch), partial(_autocast, spread))
    if not isinstance(module, LitPreference):
        return run()
    asked = module.sources.how.layout
    for layout in LADDER if asked == "auto" else (asked,):
        for model in (module.policy, *frozen):
            module.sources.assume(model, layout)
        try:
            return run()
        except Exception as error:  # noqa: BLE001 (whatever a model does with inputs that it was not made for)
            refused = error
    raise refused


def _frozen(module: Module) -> Iterator[nn.Module]:
    """The models beside the one that is trained."""
    if isinstance(module, LitReward):
        return
    if module.reference is not None:
        with module.reference.active() as model:
            if model is not module.policy:
                yield model
    if isinstance(module, LitOnline):
        scorer: Any = getattr(module.score, "_model", None)
        if scorer is not None:
            yield scorer


def _loss(module: Module, batch: PairBatch) -> Tensor:
    """As in the module's training step; books, running numbers and, online, the drawing are left out."""
    if isinstance(module, LitPreference):
        part = batch if module.objective.needs_rejected else batch.chosen_side()
        if module.objective.across_pairs:
            loss: Tensor = module.objective(module(part)).loss
            return loss.sum()
        return module._scoring.charge(part, draw_in_evaluation(part.index), module.running.values).loss
    if isinstance(module, LitReward):
        scored: Tensor = module.objective(module(batch), batch.margin).loss
        return scored.sum()
    drawn = batch.chosen_side()
    total = response_log_probs(module.policy, drawn).sum()
    if module.value_model is not None:
        total = total + response_values(module.value_model, drawn).sum()
    return total


def _autocast(spread: Spread) -> AbstractContextManager[Any]:
    if spread.precision != "bf16-mixed" or spread.cut:
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def _memory(module: Module, frozen: Sequence[nn.Module], step: Step, spread: Spread) -> Memory:
    """Weights and their companions are counted, what lives between is as rehearsed."""
    trained = _trained(module)
    width = 4 if spread.precision == "bf16-mixed" else None  # bytes of a weight, where it is not its own
    parameters = _bytes(module.parameters(), width)
    gradients = _bytes(trained, width)
    states = int(state_per_weight(module.optimizer) * sum(p.numel() for p in trained))
    beside = sum(_bytes(model.parameters(), width if spread.cut else None) for model in frozen)
    share = spread.processes if spread.cut else 1
    working = max(step.forward, step.beside)
    if spread.accumulate == 1:  # the gradients of the last step are gone before those of this one come
        working = max(step.forward, step.backward - gradients) if not spread.cut else working
    moment = _moment(trained, gradients // share, spread)
    return Memory(
        parameters=parameters // share,
        gradients=gradients // share,
        optimizer=states // share,
        frozen=beside // share,
        activations=step.activations,
        head=max(0, working - step.activations),
        communication=_communication(module, frozen, spread),
        step=max(0, moment - max(working, step.activations)),
    )


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _bytes(weights: Iterable[Tensor], width: int | None = None) -> int:
    return sum(weight.numel() * (width or weight.element_size()) for weight in weights)


def state_per_weight(optimizer: OptimizerCallable) -> float:
    """Bytes of optimizer state for each float32 weight, found by taking a step.

    >>> from torch.optim import SGD, AdamW
    >>> state_per_weight(AdamW), state_per_weight(SGD)
    (8.0, 0.0)
    """
    weight = nn.Parameter(torch.zeros(64, 64))
    weight.grad = torch.ones_like(weight)
    trial: Any = optimizer([weight])
    trial.step()
    states = [value for value in trial.state[weight].values() if isinstance(value, Tensor) and value.numel() > 1]
    return sum(value.nbytes for value in states) / weight.numel()


def _moment(trained: Sequence[nn.Parameter], gradients: int, spread: Spread) -> int:
    """What the optimizer's arithmetic holds: of all weights at once on a GPU, of the largest twice on a CPU."""
    if spread.device == "cuda":
        return gradients
    return 2 * max((p.numel() * p.element_size() for p in trained), default=0)


def _communication(module: nn.Module, frozen: Sequence[nn.Module], spread: Spread) -> int:
    """DDP keeps a copy of the gradients; cut weights are put together outside the layers, and two layers at a time."""
    if spread.processes == 1:
        return 0
    if not spread.cut:
        return _bytes(_trained(module))
    together = 0
    for model in (module, *frozen):
        each = [_bytes(layer.parameters()) for layer in layers(model)]
        whole = _bytes(model.parameters()) - sum(each) + 2 * max(each, default=0)
        together += whole if model is module else 0
        together = max(together, whole)
    largest = max((sum(p.numel() for p in layer.parameters()) for layer in layers(module)), default=0)
    return together + 4 * largest
