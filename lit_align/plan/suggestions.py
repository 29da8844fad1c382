"""Changes of a configuration that need less memory, each of them estimated by a dry run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lit_align.models.generation import CachedGenerator
from lit_align.modules import Module
from lit_align.plan.estimate import estimate
from lit_align.plan.memory import Parallelism
from lit_align.types import PairBatch

_WRITTEN = 8
"""Responses that are written at once where there is little memory."""


@dataclass
class Case:
    """A run that is planned.

    Args:
        module: as it is built from the configuration, not configured.
        batch: the largest micro-batch.
        parallelism: of the run.
    """

    module: Module
    batch: PairBatch
    parallelism: Parallelism


Change: TypeAlias = Callable[[Case], None]
"""Changes a case in place."""


def suggestions(case: Case) -> Iterator[tuple[str, int]]:
    """Iterate over settings and the bytes of each process with them: one at a time, and then all together.

    Args:
        case: what is planned; it is not changed.
    """
    changes = dict(_changes(case))
    for setting, change in changes.items():
        yield setting, _total_with(case, change)
    if len(changes) > 1:
        yield "all of these", _total_with(case, *changes.values())


def _total_with(case: Case, *changes: Change) -> int:
    changed = copy.deepcopy(case)
    for change in changes:
        change(changed)
    return estimate(changed.module, changed.batch, changed.parallelism).memory.total


def _changes(case: Case) -> Iterator[tuple[str, Change]]:
    """Iterate over the settings that would have an effect."""
    module, parallelism = case.module, case.parallelism
    if not module.loading.gradient_checkpointing:
        yield (
            "model.loading.gradient_checkpointing: true",
            lambda case: _set(case.module, "loading", gradient_checkpointing=True),
        )
    yield from _online_changes(case) if module.task == "online" else _pair_changes(case)
    if parallelism.precision == "32-true" and module.loading.dtype == "float32":
        yield "trainer.precision: bf16-mixed", lambda case: _set(case, "parallelism", precision="bf16-mixed")
    if not parallelism.sharded and parallelism.processes > 1:
        yield "trainer.strategy: fsdp", lambda case: _set(case, "parallelism", sharded=True)


def _pair_changes(case: Case) -> Iterator[tuple[str, Change]]:
    module, rows = case.module, len(case.batch.index)
    if rows == 1:
        return
    if module.task == "preference" and module.objective.needs.batch_level:

        def one_pair(case: Case) -> None:
            case.batch = case.batch.rows(slice(1))
            _set(case, "parallelism", accumulate=case.parallelism.accumulate * rows)

        yield "data.batch_size: 1, and more trainer.accumulate_grad_batches", one_pair
        return
    longest = int(case.batch.attention_mask.sum((1, 2)).max())
    if not 0 < module.readers.how.chunk_tokens(case.parallelism.device, batch_level=False) <= longest:
        yield (
            "model.forward_pass.tokens_at_once: tokens of the longest pair",
            lambda case: _set(case.module.readers, "how", tokens_at_once=longest),
        )


def _online_changes(case: Case) -> Iterator[tuple[str, Change]]:
    module: Any = case.module
    if module.objective.needs.values and not module.value.loading.gradient_checkpointing:
        loading = replace(module.value.loading, gradient_checkpointing=True)
        yield (
            "model.value.loading.gradient_checkpointing: true",
            lambda case: _set(case.module, "value", loading=loading),
        )
    if module.settings.micro_batch > 1:
        yield "model.micro_batch: 1", lambda case: _set(case.module, "settings", micro_batch=1)
    generator = module.generator
    if isinstance(generator, CachedGenerator) and min(generator.batch_size, len(case.batch.index)) > _WRITTEN:
        yield (
            f"model.generator.batch_size: {_WRITTEN}",
            lambda case: _set(case.module, "generator", batch_size=_WRITTEN),
        )


def _set(owner: object, name: str, **changes: object) -> None:
    """Replace fields of a frozen record that is an attribute of an object."""
    setattr(owner, name, replace(getattr(owner, name), **changes))
