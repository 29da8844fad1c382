"""The random choice of a response's tokens: settings, nucleus, and random numbers that belong to one response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lit_align.errors import check_range


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Args:
        max_new_tokens: longest response, in tokens.
        temperature: divides the logits; 0 takes the most likely token each time.
        top_p: share of probability that is sampled from; below 1 the samples are not the policy's own.
        seed: the same seed gives the same responses for the same prompts in the same order.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("Sampling: max_new_tokens", self.max_new_tokens, 1)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"Sampling: temperature is {self.temperature}; expected a finite number, 0 or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p is {self.top_p}; expected 0 < top_p <= 1")


class RowSampling(LogitsProcessor):
    """Choose the token of each row with the row's own random numbers, and mask all others.

    Args:
        numbers: a number in [0, 1) for each row and step.
        sampling: temperature (above 0) and top-p.
    """

    def __init__(self, numbers: Tensor, sampling: Sampling) -> None:
        self.numbers = numbers
        self.sampling = sampling
        self._step = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return logits of which one in each row is finite."""
        probabilities = (scores.double() / self.sampling.temperature).softmax(-1)
        cumulative = cumulative_sum(nucleus(probabilities, self.sampling.top_p))
        if self.numbers.device != cumulative.device:  # once, not a column for each token
            self.numbers = self.numbers.to(cumulative.device, non_blocking=True)
        numbers = self.numbers[:, self._step, None]
        token = torch.searchsorted(cumulative, numbers * cumulative[:, -1:], right=True)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, token.clamp_max(scores.shape[-1] - 1), 0.0)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set all but the most likely tokens that together reach ``top_p`` to 0, without renormalising.

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.7)
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    if top_p == 1:
        return probabilities
    ordered, places = probabilities.sort(-1, descending=True)
    before = cumulative_sum(ordered) - ordered
    return torch.zeros_like(probabilities).scatter(-1, places, torch.where(before < top_p, ordered, 0.0))


def cumulative_sum(probabilities: Tensor) -> Tensor:
    """Return cumulative sums of the last axis; in fixed point where PyTorch must use deterministic algorithms.

    It has no deterministic one for numbers in floating point on CUDA. Fixed point differs by less than 1e-10.

    >>> torch.use_deterministic_algorithms(True)
    >>> cumulative_sum(torch.tensor([0.25, 0.25, 0.5]))
    tensor([0.2500, 0.5000, 1.0000])
    >>> torch.use_deterministic_algorithms(False)
    """
    if not torch.are_deterministic_algorithms_enabled():
        return probabilities.cumsum(-1)
    scale = 2.0**52
    fixed = (probabilities.double() * scale).round().long()
    return (fixed.cumsum(-1).double() / scale).to(probabilities.dtype)


def uniform_numbers(seeds: Sequence[int], steps: int) -> Tensor:
    """Sample a number in [0, 1) for each seed and step, which depends on these two alone."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def mix_seed(*parts: int) -> int:
    """Mix several numbers into a seed below 2^62.

    >>> mix_seed(1, 2) != mix_seed(2, 1), mix_seed(0) < 2**62
    (True, True)
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = ((mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 29
    return mixed >> 2
