"""Changes of a configuration that need less memory, each of them estimated by a dry run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Any, TypeAlias

from lit_align.cli.error_messages import KNOBS
from lit_align.models import AdapterOff, LoRA, SecondModel
from lit_align.models.generation import CachedGenerator
from lit_align.modules import Module
from lit_align.plan.estimate import estimate
from lit_align.plan.memory import Parallelism
from lit_align.types import PairBatch

_WRITTEN = 8
"""Responses that are written at once where there is little memory."""
_CHUNK = 4096
"""Tokens of a chunk where there is little memory, on a device."""


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
    changes = {setting: [change] for setting, change in _changes(case)}
    if len(changes) > 1:
        changes["all of these"] = [change for (change,) in changes.values()]
    for setting, together in changes.items():
        yield setting, _total(case, together)


def knobs(case: Case) -> Iterator[tuple[str, int]]:
    """Iterate over the settings of ``KNOBS`` that would have an effect, and the bytes of each process with them.

    Args:
        case: what is planned; it is not changed.
    """
    module, changes = case.module, dict[str, Change]()
    if module.task == "online" and module.settings.micro_batch > 1:
        changes["model.micro_batch"] = partial(_set, path="module.settings", micro_batch=1)
    elif module.task != "online" and len(case.batch.index) > 1:
        changes["model.forward_pass.tokens_at_once"] = partial(_set, path="module.readers.how", tokens_at_once=_CHUNK)
    if not module.loading.gradient_checkpointing:
        recompute = partial(_set, path="module.loading", gradient_checkpointing=True)
        changes["model.loading.gradient_checkpointing"] = recompute
    if module.lora is None:
        changes["model.lora"] = _with_adapter
    yield "", _total(case, [])
    for setting, _ in KNOBS:
        change = changes.get(setting.partition(":")[0])
        if change is not None:
            yield setting, _total(case, [change])


def _total(case: Case, changes: Sequence[Change]) -> int:
    changed = copy.deepcopy(case)
    for change in changes:
        change(changed)
    return estimate(changed.module, changed.batch, changed.parallelism).memory.total


def _with_adapter(case: Case) -> None:
    """Train an adapter on weights in bfloat16; the reference is then the policy without it."""
    module: Any = case.module
    module.lora, module.loading = LoRA(), replace(module.loading, dtype="bfloat16")
    if isinstance(module.reference, SecondModel):
        module.reference = AdapterOff()


def _changes(case: Case) -> Iterator[tuple[str, Change]]:
    """Iterate over the settings that would have an effect."""
    module, parallelism = case.module, case.parallelism
    if not module.loading.gradient_checkpointing:
        recompute = partial(_set, path="module.loading", gradient_checkpointing=True)
        yield "model.loading.gradient_checkpointing: true", recompute
    yield from _online_changes(case) if module.task == "online" else _pair_changes(case)
    if parallelism.precision == "32-true" and module.loading.dtype == "float32":
        yield "trainer.precision: bf16-mixed", partial(_set, path="parallelism", precision="bf16-mixed")
    if not parallelism.sharded and parallelism.processes > 1:
        yield "trainer.strategy: fsdp", partial(_set, path="parallelism", sharded=True)


def _pair_changes(case: Case) -> Iterator[tuple[str, Change]]:
    module, rows = case.module, len(case.batch.index)
    longest = int(case.batch.attention_mask.sum((1, 2)).max())
    if rows == 1:
        return
    if module.task == "preference" and module.objective.needs.batch_level:

        def one_pair(case: Case) -> None:
            case.batch = case.batch.rows(slice(1))
            _set(case, "parallelism", accumulate=case.parallelism.accumulate * rows)

        yield "data.batch_size: 1, and more trainer.accumulate_grad_batches", one_pair
    elif not 0 < module.readers.how.chunk_tokens(case.parallelism.device, batch_level=False) <= longest:
        fewer = partial(_set, path="module.readers.how", tokens_at_once=longest)
        yield "model.forward_pass.tokens_at_once: tokens of the longest pair", fewer


def _online_changes(case: Case) -> Iterator[tuple[str, Change]]:
    module: Any = case.module
    if module.settings.needs.values and not module.value.loading.gradient_checkpointing:
        loading = replace(module.value.loading, gradient_checkpointing=True)
        yield "model.value.loading.gradient_checkpointing: true", partial(_set, path="module.value", loading=loading)
    if module.settings.micro_batch > 1:
        yield "model.micro_batch: 1", partial(_set, path="module.settings", micro_batch=1)
    generator = module.generator
    if isinstance(generator, CachedGenerator) and min(generator.batch_size, len(case.batch.index)) > _WRITTEN:
        fewer = partial(_set, path="module.generator", batch_size=_WRITTEN)
        yield f"model.generator.batch_size: {_WRITTEN}", fewer


def _set(case: Case, path: str, **changes: object) -> None:
    """Replace fields of the frozen record at the end of a path of attributes."""
    *owners, name = path.split(".")
    owner = attrgetter(".".join(owners))(case) if owners else case
    setattr(owner, name, replace(getattr(owner, name), **changes))
