"""A knob is a change of the configuration that needs less memory; each is rehearsed like the plan itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

from lit_align.models.generation import CachedGenerator
from lit_align.modules import LitOnline, LitPreference, Module
from lit_align.plan.estimate import estimate
from lit_align.plan.memory import Spread
from lit_align.types import PairBatch

WRITTEN = 8
"""Responses that are written at once where there is little room."""


@dataclass(frozen=True)
class Knob:
    """A change, and what each GPU's memory holds with it.

    Args:
        setting: what to set.
        total: bytes.
    """

    setting: str
    total: int


@dataclass(frozen=True)
class Case:
    """What is planned.

    Args:
        module: as it is built from the configuration, without models.
        batch: its largest micro-batch.
        spread: how the run is spread.
    """

    module: Module
    batch: PairBatch
    spread: Spread

    def total(self) -> int:
        """Bytes of each GPU."""
        return estimate(copy.deepcopy(self.module), self.batch, self.spread).memory.total


def knobs(case: Case) -> Iterator[Knob]:
    """What helps: one at a time, and then all together.

    Args:
        case: what is planned.
    """
    found = {name: change for name, change in CHANGES.items() if change(copy.deepcopy(case)) is not None}
    together = copy.deepcopy(case)
    for name, change in found.items():
        changed = change(copy.deepcopy(case))
        together = change(together) or together
        if changed is not None:
            yield Knob(name, changed.total())
    if len(found) > 1:
        yield Knob("all of these", together.total())


def _recompute(case: Case) -> Case | None:
    if case.module.loading.gradient_checkpointing:
        return None
    case.module.loading = replace(case.module.loading, gradient_checkpointing=True)
    return case


def _portions(case: Case) -> Case | None:
    """A pair at a time."""
    longest = int(case.batch.attention_mask.sum((1, 2)).max())
    if isinstance(case.module, LitOnline) or _across(case.module) or len(case.batch.index) == 1:
        return None
    sources = case.module.readers
    if 0 < sources.how.chunk_tokens(case.spread.device, batch_level=False) <= longest:
        return None
    sources.how = replace(sources.how, tokens_at_once=longest)
    return case


def _across(module: Module) -> bool:
    """Whether pairs depend on each other."""
    return isinstance(module, LitPreference) and module.objective.needs.batch_level


def _one_row(case: Case) -> Case | None:
    rows = len(case.batch.index)
    if rows == 1 or not _across(case.module):
        return None
    spread = replace(case.spread, accumulate=case.spread.accumulate * rows)
    return replace(case, batch=case.batch.rows(slice(1)), spread=spread)


def _recompute_values(case: Case) -> Case | None:
    module = case.module
    if not isinstance(module, LitOnline) or not module.objective.needs.values:
        return None
    if module.value.loading.gradient_checkpointing:
        return None
    module.value = replace(module.value, loading=replace(module.value.loading, gradient_checkpointing=True))
    return case


def _one_response(case: Case) -> Case | None:
    module = case.module
    if not isinstance(module, LitOnline) or module.settings.micro_batch == 1:
        return None
    module.settings = replace(module.settings, micro_batch=1)
    return case


def _fewer_written(case: Case) -> Case | None:
    module = case.module
    if not isinstance(module, LitOnline) or not isinstance(module.generator, CachedGenerator):
        return None
    if min(module.generator.batch_size, len(case.batch.index)) <= WRITTEN:
        return None
    module.generator = replace(module.generator, batch_size=WRITTEN)
    return case


def _cut(case: Case) -> Case | None:
    if case.spread.cut or case.spread.processes == 1:
        return None
    return replace(case, spread=replace(case.spread, cut=True))


def _half(case: Case) -> Case | None:
    if case.spread.precision != "32-true" or case.module.loading.dtype != "float32":
        return None
    return replace(case, spread=replace(case.spread, precision="bf16-mixed"))


CHANGES = {
    "model.loading.gradient_checkpointing: true": _recompute,
    "model.forward_pass.tokens_at_once: tokens of the longest pair": _portions,
    "data.batch_size: 1, and more trainer.accumulate_grad_batches": _one_row,
    "model.value.loading.gradient_checkpointing: true": _recompute_values,
    "model.micro_batch: 1": _one_response,
    f"model.generator.batch_size: {WRITTEN}": _fewer_written,
    "trainer.precision: bf16-mixed": _half,
    "trainer.strategy: fsdp": _cut,
}
