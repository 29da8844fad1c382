"""Inputs of both sides: a policy, a reference that differs from it, a tokenizer, a few pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed

PAIRS = 6
MOVED = 0.006
"""Standard deviation of what is added to the policy's weights: log-ratios of some nats."""


@dataclass(frozen=True)
class Setting:
    """A folder with ``policy``, ``reference`` and ``pairs.jsonl``."""

    folder: Path

    @property
    def policy(self) -> Path:
        """Weights and tokenizer of the policy."""
        return self.folder / "policy"

    @property
    def reference(self) -> Path:
        """Weights and tokenizer of the reference."""
        return self.folder / "reference"

    @property
    def pairs(self) -> Path:
        """The rows."""
        return self.folder / "pairs.jsonl"

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows, read."""
        return [json.loads(line) for line in self.pairs.read_text("utf-8").splitlines()]


def written(folder: Path) -> Setting:
    """Write the setting to an empty folder: the testbed's policy as reference, and a policy that has moved away."""
    setting = Setting(folder)
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()[:PAIRS]
    setting.pairs.write_text("\n".join(lines) + "\n", "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(testbed.path("policy"))
    model = AutoModelForCausalLM.from_pretrained(testbed.path("policy"))
    draw = torch.Generator().manual_seed(0)
    for place in (setting.reference, setting.policy):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        with torch.no_grad():
            for weight in model.parameters():
                weight += MOVED * torch.randn(weight.shape, generator=draw)
    return setting


@dataclass(frozen=True)
class Measured:
    """A loss over the pairs and its gradient by the name of each weight."""

    loss: float
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Apart:
    """Distances between two measurements, relative to the second.

    Args:
        loss: |L - L'| / |L'|.
        norm: | ‖g‖ - ‖g'‖ | / ‖g'‖.
        gradient: ‖g - g'‖ / ‖g'‖, which is at least ``norm``.
    """

    loss: float
    norm: float
    gradient: float


def apart(first: Measured, second: Measured) -> Apart:
    """Compare loss and gradient."""
    assert first.gradient.keys() == second.gradient.keys()
    ones, others = (
        torch.cat([side.gradient[name].double().flatten() for name in sorted(side.gradient)])
        for side in (first, second)
    )
    scale = float(others.norm())
    return Apart(
        loss=abs(first.loss - second.loss) / abs(second.loss),
        norm=abs(float(ones.norm()) - scale) / scale,
        gradient=float((ones - others).norm()) / scale,
    )
