"""The memory of a process in one phase of an optimizer step, and how a run is spread over processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
        device_memory: bytes of memory of the device, which the size of a tile of logits follows.
        program: resident bytes of the program itself on a CPU, where it shares the models' memory; 0 leaves it out,
            and the gaps of the allocator with it.
    """

    processes: int = 1
    sharded: bool = False
    accumulate: int = 1
    precision: str = "32-true"
    device: str = "cuda"
    device_memory: int = 80 * 2**30
    program: int = 0

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
        process: the program itself with its libraries and the prepared data, where they share the models' memory.
        gaps: freed blocks between others, which the allocator of a CPU does not give back.
    """

    parameters: int
    optimizer: int = 0
    frozen: int = 0
    gradients: int = 0
    activations: int = 0
    cache: int = 0
    working: int = 0
    communication: int = 0
    process: int = 0
    gaps: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts.

        >>> Memory(parameters=4, optimizer=8, gradients=4).total
        16
        """
        return sum(vars(self).values())
