"""An estimate says what a training step needs of each GPU, found by rehearsing the step without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_align.models import Precomputed
from lit_align.models.lm_head.patch import base_of, is_linear, output_head
from lit_align.models.logps.check import LADDER
from lit_align.models.logps.plain import packed_mask
from lit_align.models.sharding import without_weights
from lit_align.modules import LitOnline, LitPreference, LitReward, Module
from lit_align.modules.grad_cache import even_ends
from lit_align.plan.held import Held, hold, own_models
from lit_align.plan.memory import Memory, Moment, Spread
from lit_align.plan.rehearsal import Settings, give_shapes, rehearse, rehearse_reading, shapes_alone
from lit_align.plan.rollout import longest, rehearse_scoring, rehearse_writing
from lit_align.types import PairBatch


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        moments: memory of each process in each moment of a step.
        operations: floating-point operations of each process and optimizer step; of a rollout, each step's share.
        tokens: of all processes and each optimizer step, padding left out.
        trained: parameters that are trained.
        parameters: all parameters of what is trained, adapters and frozen layers included.
    """

    moments: Mapping[Moment, Memory]
    operations: int
    tokens: int
    trained: int
    parameters: int

    @property
    def fullest(self) -> Moment:
        """When memory holds most."""
        return max(self.moments, key=lambda moment: self.moments[moment].total)

    @property
    def memory(self) -> Memory:
        """Of each process when it holds most."""
        return self.moments[self.fullest]


def estimate(module: Module, batch: PairBatch, spread: Spread = Spread()) -> Estimate:
    """Rehearse a training step of a module that has no models yet; no weights are read, no memory is taken for them.

    Args:
        module: as it is built from the configuration.
        batch: the largest micro-batch that it will see; of an on-policy run, all responses of a rollout.
        spread: how the run is spread.
    """
    with without_weights():
        module.configure_model()
    frozen = module.frozen_models()
    fill: list[nn.Module] = []
    if module.task == "preference" and isinstance(module.reference, Precomputed):
        fill, frozen = frozen, []
    trained = [p for p in module.parameters() if p.requires_grad]
    held = hold(module, frozen, spread)
    mode = shapes_alone()
    for model in (module, *frozen, *fill):
        give_shapes(mode, model, torch.bfloat16 if spread.narrow else None)
    rehearsal = Rehearsal(mode, module, frozen, Settings(spread.precision, spread.share))
    if module.task == "online":
        moments, operations, tokens = rehearsal.rollout(module, batch.chosen_side(), held)
    else:
        part = _portion(module, batch, spread)
        rest = rehearsal.filling(module, part, fill, held) if isinstance(module, LitPreference) else {}
        moments, operations = rehearsal.batch(module, part, Parts(spread.accumulate, part is not batch), held)
        sizes = [int(pairs.attention_mask.sum()) for pairs in (batch, part)]
        moments, tokens = {**rest, **moments}, sizes[0] * spread.accumulate
        operations = operations * spread.accumulate * sizes[0] // sizes[1]
    return Estimate(
        moments=moments,
        operations=operations,
        tokens=tokens * spread.processes,
        trained=sum(p.numel() for p in trained),
        parameters=sum(p.numel() for p in module.parameters()),
    )


@dataclass(frozen=True)
class Parts:
    """In how many parts a step is taken.

    Args:
        micro_batches: batches whose gradients are summed up.
        portions: whether each of them goes through in several portions.
    """

    micro_batches: int
    portions: bool

    @property
    def several(self) -> bool:
        """Whether there is more than one part."""
        return self.micro_batches > 1 or self.portions


@dataclass(frozen=True)
class Rehearsal:
    """What a step is rehearsed with.

    Args:
        mode: that the weights belong to.
        module: without values.
        frozen: models beside it.
        settings: of the run.
    """

    mode: FakeTensorMode
    module: Module
    frozen: Sequence[nn.Module]
    settings: Settings

    @property
    def models(self) -> list[nn.Module]:
        """All that are there."""
        return [self.module, *self.frozen]

    def batch(
        self, module: LitPreference | LitReward, part: PairBatch, parts: Parts, held: Held
    ) -> tuple[dict[Moment, Memory], int]:
        """Memory of each moment of a step on pairs, and the operations of one micro-batch.

        Args:
            module: what is trained.
            part: what goes through the policy at once.
            parts: how many of these a step takes.
            held: weights and their companions.
        """
        loss = partial(module.dry_run_loss, part, parts.several)
        step = self._in_a_layout(module, partial(rehearse, self.mode, self.models, loss, self.settings))
        apart = _summed_apart(module) // self.settings.share if parts.micro_batches == 1 and parts.portions else 0
        return held.moments(step, parts.several, apart), step.operations

    def filling(
        self, module: LitPreference, part: PairBatch, fill: Sequence[nn.Module], held: Held
    ) -> dict[Moment, Memory]:
        """Memory while a precomputed reference reads what it has not kept, before there is an optimizer."""
        if not isinstance(module.reference, Precomputed):
            return {}
        models = [*self.models, *fill]
        with module.reference.active() as model:
            read = partial(module.readers.read, model, part)
            peak, _ = self._in_a_layout(
                module, partial(rehearse_reading, self.mode, models, read, self.settings), model
            )
        setattr(module.reference, "log_probs", _no_log_probs)  # noqa: B010 (from here on they come from disk)
        return {"reference": held.reading(peak, sum(_bytes(model.parameters()) for model in fill))}

    def _in_a_layout(self, module: Module, run: Callable[[], Any], *others: nn.Module) -> Any:
        """In the first layout that the model can be read in; a run tries the same ones, on real weights."""
        asked = module.readers.how.layout
        for layout in LADDER if asked == "auto" else (asked,):
            for model in (*own_models(module), *self.frozen, *others):
                module.readers.assume(model, layout)
            try:
                return run()
            except Exception as error:  # noqa: BLE001 (whatever a model does with inputs that it was not made for)
                refused = error
        raise refused

    def rollout(self, module: LitOnline, batch: PairBatch, held: Held) -> tuple[dict[Moment, Memory], int, int]:
        """Memory of each moment of a rollout and of the steps on it; operations and tokens of one of these steps.

        Args:
            module: what is trained.
            batch: all responses of the rollout.
            held: weights and their companions.
        """
        settings, rows = module.settings, len(batch.index)
        module.policy.eval()
        written = rehearse_writing(self.mode, self.models, module, batch, self.settings)
        peak, scoring = self._in_a_layout(
            module, partial(rehearse_scoring, self.mode, self.models, module, batch, self.settings)
        )
        module.policy.train()
        each = math.ceil(rows / settings.minibatches)
        part = longest(batch, min(each, settings.micro_batch))
        step = rehearse(self.mode, self.models, partial(module.dry_run_loss, part), self.settings)
        several = each > settings.micro_batch
        moments: dict[Moment, Memory] = {
            "writing": held.rolling(written.working, written.cache),
            "scoring": held.rolling(peak),
            **held.moments(step, several),
        }
        sizes = [int(found.attention_mask.sum()) for found in (batch, part)]
        updates = step.operations * sizes[0] // sizes[1] // settings.minibatches
        operations = updates + (written.operations + scoring) // settings.steps
        return moments, operations, sizes[0] // settings.minibatches


def _portion(module: Module, batch: PairBatch, spread: Spread) -> PairBatch:
    """What goes through the policy at once: the batch, or the largest of the portions that it is taken in."""
    across = isinstance(module, LitPreference) and module.objective.needs.batch_level
    most = module.readers.how.chunk_tokens(spread.device, across)
    sizes = batch.attention_mask.sum((1, 2)).tolist()
    if not 0 < most < sum(sizes) or len(sizes) == 1:
        return batch
    ends = even_ends(sizes, min(math.ceil(sum(sizes) / most), len(sizes)))
    return max((batch.rows(slice(*cut)) for cut in pairwise((0, *ends))), key=lambda found: int(found.mask.sum()))


def _summed_apart(module: LitPreference | LitReward) -> int:
    """Bytes of an output head's gradient in a ``HeadGradientAccumulator``."""
    if isinstance(module, LitReward) or module.objective.needs.batch_level:
        return 0
    if module.readers.layout(module.policy) == "plain":
        return 0
    head = output_head(module.policy)
    if head is None or not is_linear(head):
        return 0
    weight, embedding = head.get_parameter("weight"), base_of(module.policy).get_input_embeddings()
    return weight.nbytes if weight.requires_grad and weight is not embedding.weight else 0


def _no_log_probs(batch: PairBatch) -> Tensor:
    return torch.zeros(packed_mask(batch).shape)


def _bytes(weights: Iterable[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)
