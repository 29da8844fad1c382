"""The memory of one process at one moment of a training step, by what lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Moment: TypeAlias = Literal["reference", "writing", "scoring", "forward", "backward", "step"]
"""When: a reference reads ahead, responses are written, then scored; a loss, its gradient, a step is taken."""


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

    @property
    def share(self) -> int:
        """Of how many parts of the weights each process keeps one."""
        return self.processes if self.cut else 1

    @property
    def narrow(self) -> bool:
        """Whether weights are put together in 16 bits, and only there."""
        return self.cut and self.precision == "bf16-mixed"


@dataclass(frozen=True)
class Memory:
    """Bytes in each process's memory when it holds most in a moment.

    Args:
        parameters: of what is trained, adapters and frozen layers below them included.
        optimizer: its states.
        frozen: models beside it: the reference, a reward model.
        gradients: of what is trained, those that are there.
        activations: kept for the backward pass.
        cache: keys and values of the responses that are being written.
        working: what lives for a moment: logits, their softmax, the arithmetic of backward pass and optimizer.
        communication: layers that are put together for a moment, and DDP's copy of the gradients.
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
        """All of it.

        >>> Memory(parameters=4, optimizer=8, gradients=4).total
        16
        """
        return sum(vars(self).values())
