"""Schedules of the learning rate over the optimizer steps of a run."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from typing_extensions import override


class Schedule(ABC):
    """A factor on the learning rate for each optimizer step."""

    @abstractmethod
    def factor(self, step: int, total: int) -> float:
        """Return the factor at optimizer step ``step`` (from 0) of ``total``."""


@dataclass(frozen=True)
class Constant(Schedule):
    """Warm up, then stay constant.

    Args:
        warmup: share of all steps over which the rate rises from just above 0.

    >>> [Constant(warmup=0.5).factor(step, 4) for step in range(4)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 1.0]
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share("Constant", "warmup", self.warmup)

    @override
    def factor(self, step: int, total: int) -> float:
        return _rise(step, total, self.warmup)


@dataclass(frozen=True)
class Linear(Schedule):
    """Warm up, then decrease linearly to 0 after the last step.

    Args:
        warmup: share of all steps over which the rate rises.

    >>> [Linear(warmup=0.0).factor(step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """

    warmup: float = 0.1

    def __post_init__(self) -> None:
        _check_share("Linear", "warmup", self.warmup)

    @override
    def factor(self, step: int, total: int) -> float:
        return _rise(step, total, self.warmup) * (1 - _fallen(step, total, self.warmup))


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Warm up, then decrease along half a cosine: $f + (1 - f)\,\tfrac12(1 + \cos \pi p)$ at progress p.

    Args:
        warmup: share of all steps over which the rate rises.
        floor: the factor f at the end.

    >>> [round(Cosine(warmup=0.0).factor(step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    warmup: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_share("Cosine", "warmup", self.warmup)
        _check_share("Cosine", "floor", self.floor)

    @override
    def factor(self, step: int, total: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * _fallen(step, total, self.warmup)))
        return _rise(step, total, self.warmup) * (self.floor + (1 - self.floor) * wave)


def _check_share(part: str, key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{part}: {key} is {value}; expected 0 <= {key} < 1")


def _rise(step: int, total: int, warmup: float) -> float:
    return min(1.0, (step + 1) / (math.ceil(warmup * total) + 1))


def _fallen(step: int, total: int, warmup: float) -> float:
    start = math.ceil(warmup * total)
    return min(1.0, max(0.0, (step - start) / max(1, total - start)))
