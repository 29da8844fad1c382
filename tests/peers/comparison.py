"""Comparisons: both sides of a case, and the distances between their losses and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from lit_align.types import PairBatch

from . import theirs
from .cases import Case
from .ours import Ours
from .setting import Apart, Measured, Setting, apart


@dataclass(frozen=True)
class Compared:
    """Both sides of one case, and the distance between them."""

    theirs: Measured
    ours: Measured
    apart: Apart


def compared(case: Case, setting: Setting, batch: PairBatch) -> Compared:
    """Compute loss and gradient of both sides with the same weights and pairs."""
    trainer = theirs.trainer(case.trainer, setting, **case.options)
    given = theirs.batch_of(trainer)
    if "KL_input_ids" in given:
        batch = replace(batch, mismatched=mismatched(given, batch))
    own = Ours(case.objective, setting, batch).measured(case.total)
    other = theirs.measured(trainer, given)
    return Compared(other, own, apart(own, other))


def mismatched(given: dict[str, Any], batch: PairBatch) -> PairBatch:
    """Return TRL's mismatched pairs: all chosen responses, then all rejected responses."""
    ids, attention, scored = (given[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask"))

    def sides(value: torch.Tensor) -> torch.Tensor:
        return torch.stack(value.chunk(2), 1)

    return replace(batch, input_ids=sides(ids), attention_mask=sides(attention).bool(), mask=sides(scored).bool())
