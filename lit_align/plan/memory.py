"""The memory model: what a process holds in each phase of an optimizer step, in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from torch import Tensor, nn

from lit_align.models.sharding import layers
from lit_align.modules import Module

Phase: TypeAlias = Literal["reference", "writing", "scoring", "forward", "backward", "step"]
"""A reference reads the data ahead; responses are written, then scored; loss, gradient, optimizer step."""


@dataclass(frozen=True)
class Parallelism:
    """How a run is spread over processes and micro-batches.

    Args:
        processes: GPUs, or processes without one.
        sharded: each process keeps a part of weights, gradients and optimizer states (fsdp), instead of all (ddp).
        accumulate: micro-batches of an optimizer step.
        precision: ``32-true`` or ``bf16-mixed``.
        device: ``cuda``, where an optimizer updates all weights at once, or ``cpu``.
    """

    processes: int = 1
    sharded: bool = False
    accumulate: int = 1
    precision: str = "32-true"
    device: str = "cuda"

    @property
    def shards(self) -> int:
        """Number of parts of the weights, of which each process keeps one."""
        return self.processes if self.sharded else 1

    @property
    def gathers_bfloat16(self) -> bool:
        """Whether sharded weights are gathered in bfloat16, which replaces autocast."""
        return self.sharded and self.precision == "bf16-mixed"


@dataclass(frozen=True)
class Memory:
    """Largest memory of a process in one phase, in bytes.

    Args:
        parameters: trained models, with adapters and the frozen layers below them.
        optimizer: optimizer states.
        frozen: models that are not trained: the reference, a reward model.
        gradients: those that exist in this phase.
        activations: kept for the backward pass.
        cache: keys and values of the responses that are being written.
        working: temporaries, such as logits, their softmax, and the arithmetic of backward pass and optimizer.
        communication: gathered layers of sharded models, and DDP's copy of the gradients.
    """

    parameters: int
    optimizer: int = 0
    frozen: int = 0
    gradients: int = 0
    activations: int = 0
    cache: int = 0
    working: int = 0
    communication: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts.

        >>> Memory(parameters=4, optimizer=8, gradients=4).total
        16
        """
        return sum(vars(self).values())


@dataclass(frozen=True)
class PassCost:
    """What one forward and backward pass needs beside weights and optimizer states, in bytes.

    Args:
        activations: alive behind the last layer, and kept for the backward pass.
        forward: peak of the forward pass.
        backward: peak of the backward pass, with the gradients that exist at that time.
        gradients: these gradients.
        backward_alone: peak of the backward pass without any gradients.
        left: alive after the backward pass, without the gradients.
        operations: floating-point operations of both passes, those of frozen models included.
    """

    activations: int
    forward: int
    backward: int
    gradients: int
    backward_alone: int
    left: int
    operations: int


class TrainingState:
    """What a process keeps from step to step, in bytes.

    Args:
        module: its parameters need shapes and dtypes only.
        frozen: models that are not trained.
        optimizer: bytes of the optimizer's states and of its temporaries, before sharding.
        parallelism: of the run.
    """

    def __init__(
        self, module: Module, frozen: Sequence[nn.Module], optimizer: tuple[int, int], parallelism: Parallelism
    ) -> None:
        shards, several = parallelism.shards, parallelism.processes > 1
        gradients = sum_bytes(p for p in module.parameters() if p.requires_grad)
        self.gradients = gradients // shards
        self.optimizer_working = optimizer[1] // shards
        self.resident = Memory(
            parameters=sum_bytes(module.parameters()) // shards,
            optimizer=optimizer[0] // shards,
            frozen=sum(sum_bytes(model.parameters()) for model in frozen) // shards,
            communication=gradients if several and not parallelism.sharded else 0,  # DDP's buckets
        )
        self.gathered_layers = self.gathered_model = 0
        if several and parallelism.sharded:
            trained = trained_models(module)
            self.gathered_layers = _gathered_layers(trained, frozen, parallelism)
            self.gathered_model = max(_gathered(model, parallelism) for model in (*trained, *frozen))

    def training(self, cost: PassCost, is_part: bool, head_gradient: int = 0) -> dict[Phase, Memory]:
        """Return the memory of an optimizer step in each of its phases.

        Args:
            cost: of a forward and backward pass.
            is_part: whether the gradients of several passes are added up, so that they exist before the last pass.
            head_gradient: bytes of the output head's gradient where chunks add it up outside of ``.grad``; the pass
                has counted them.
        """
        before = self.gradients - head_gradient if is_part else 0
        during = before if is_part else cost.gradients
        backward = cost.backward_alone if is_part else cost.backward - cost.gradients
        kept = cost.activations
        return {
            "forward": self._loss_phase(before, kept, cost.forward - kept),
            "backward": self._loss_phase(during, min(kept, backward), backward - kept),
            "step": replace(self.resident, gradients=self.gradients, working=cost.left + self.optimizer_working),
        }

    def _loss_phase(self, gradients: int, activations: int, working: int) -> Memory:
        return replace(
            self.resident,
            gradients=gradients,
            activations=activations,
            working=max(0, working),
            communication=self.resident.communication + self.gathered_layers,
        )

    def rollout(self, working: int, cache: int = 0) -> Memory:
        """Return the memory while responses are written or scored, when there are no gradients.

        Args:
            working: bytes of temporaries.
            cache: bytes of keys and values.
        """
        communication = self.resident.communication + self.gathered_model
        return replace(self.resident, working=working, cache=cache, communication=communication)


def trained_models(module: Module) -> list[nn.Module]:
    """Return the models of a module: its children that have weights."""
    return [model for model in module.children() if any(True for _ in model.parameters())]


def sum_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def _gathered_layers(trained: Sequence[nn.Module], frozen: Sequence[nn.Module], parallelism: Parallelism) -> int:
    """Return the bytes that are gathered while a loss is computed.

    The weights outside the layers are whole during a pass, and two layers at a time; the gradients of a layer are
    whole in float32. Frozen models are read one after the other, while those of a trained model stay gathered.
    """

    def layer(model: nn.Module) -> int:
        return max((_gathered(part, parallelism) for part in layers(model)), default=0)

    def outside(model: nn.Module) -> int:
        return _gathered(model, parallelism) - sum(_gathered(part, parallelism) for part in layers(model))

    while_trained = sum(map(outside, trained)) + 2 * max(map(layer, trained))
    while_read = max((outside(model) + 2 * layer(model) for model in frozen), default=0)
    numbers = (sum(p.numel() for p in part.parameters()) for model in trained for part in layers(model))
    return max(while_trained, while_read) + 4 * max(numbers, default=0)


def _gathered(model: nn.Module, parallelism: Parallelism) -> int:
    """Return the bytes of weights as they are gathered."""
    most = 2 if parallelism.gathers_bfloat16 else 8
    return sum(p.numel() * min(most, p.element_size()) for p in model.parameters())
