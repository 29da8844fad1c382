"""Memory, operations and tokens of a run's optimizer step, from dry runs of its phases."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from typing_extensions import override

from lit_align.models import Precomputed
from lit_align.models.lm_head.patch import base_of, is_linear, output_head
from lit_align.models.logps.plain import packed_mask
from lit_align.models.quantization import stored_bytes
from lit_align.models.sampling import RowSampling
from lit_align.models.sharding import without_weights
from lit_align.modules import LitOnline, LitPreference, LitReward, Module
from lit_align.modules.grad_cache import even_ends
from lit_align.plan.dry_run import DryRun, sum_bytes
from lit_align.plan.memory import Memory, Parallelism, Phase
from lit_align.types import PairBatch, PairTokens

GAPS = 0.5
"""Memory between the blocks of a CPU's allocator, per byte of activations and temporaries; glibc left 0.3 to 0.85."""


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Args:
        phases: memory of each process in each phase of a step.
        operations: floating-point operations of each process and optimizer step, with its share of a rollout.
        tokens: of an optimizer step of all processes, without padding.
        trained: number of parameters that are trained.
        parameters: number of all parameters of the trained models.
    """

    phases: Mapping[Phase, Memory]
    operations: int
    tokens: int
    trained: int
    parameters: int

    @property
    def fullest(self) -> Phase:
        """The phase that needs most memory."""
        return max(self.phases, key=lambda phase: self.phases[phase].total)

    @property
    def memory(self) -> Memory:
        """Memory of each process in this phase."""
        return self.phases[self.fullest]


def estimate(module: Module, batch: PairBatch, parallelism: Parallelism = Parallelism()) -> Estimate:
    """Estimate a training step by dry runs; no weights are read, and none are allocated.

    Args:
        module: as it is built from the configuration, not configured yet; it cannot be trained afterwards.
        batch: the largest micro-batch; of an on-policy run, all responses of a rollout.
        parallelism: of the run.
    """
    with without_weights():
        module.configure_model()
    frozen, released = module.frozen_models(), []
    if module.task == "preference" and isinstance(module.reference, Precomputed):
        frozen, released = [], frozen
    dry_run = DryRun(module, frozen, released, parallelism)
    if module.task == "online":
        phases, operations, tokens = _online_step(module, batch.chosen_side(), dry_run)
    else:
        phases, operations, tokens = _pair_step(module, batch, dry_run)
    if parallelism.program:
        phases = {phase: _beside_program(memory, parallelism.program) for phase, memory in phases.items()}
    return Estimate(
        phases=phases,
        operations=operations,
        tokens=tokens * parallelism.processes,
        trained=sum(p.numel() for p in module.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in module.parameters()),
    )


def _beside_program(memory: Memory, program: int) -> Memory:
    """Return the memory on a CPU, where the program takes of the same, and the allocator leaves gaps."""
    return replace(memory, process=program, gaps=int(GAPS * (memory.activations + memory.working)))


# ── steps on pairs ──────────────────────────────────────────────────────────────────────────────────────────────


def _pair_step(
    module: LitPreference | LitReward, batch: PairBatch, dry_run: DryRun
) -> tuple[dict[Phase, Memory], int, int]:
    """Return the memory of each phase, the operations and the tokens of a step on pairs."""
    accumulate = dry_run.parallelism.accumulate
    chunk = _largest_chunk(module, batch, dry_run.parallelism)
    phases: dict[Phase, Memory] = {}
    if module.task == "preference" and isinstance(module.reference, Precomputed):
        phases["reference"] = _precompute(module, module.reference, chunk, dry_run)
    is_part = chunk is not batch or accumulate > 1
    loss = partial(module.dry_run_loss, chunk, is_part)
    head_gradient = (
        _head_gradient(module) // dry_run.parallelism.shards if chunk is not batch and accumulate == 1 else 0
    )
    step, operations = dry_run.in_first_layout(lambda: dry_run.train(loss, is_part, head_gradient))
    tokens, chunk_tokens = (int(pairs.attention_mask.sum()) for pairs in (batch, chunk))
    return phases | step, operations * accumulate * tokens // chunk_tokens, tokens * accumulate


def _precompute(module: LitPreference, reference: Precomputed, chunk: PairBatch, dry_run: DryRun) -> Memory:
    """Return the memory while a reference computes what it stores; afterwards it is a `_Stored` one."""
    with reference.active() as model:
        peak, _ = dry_run.in_first_layout(lambda: dry_run.read(partial(module.readers.read, model, chunk)))
    module.reference = _Stored()
    weights = sum(stored_bytes(model) for model in dry_run.released)
    return Memory(dry_run.resident.parameters, frozen=weights, working=peak, communication=dry_run.gathered_layers)


class _Stored(Precomputed):
    """A reference whose values are all on disk, and zeros."""

    @override
    def log_probs(self, batch: PairBatch) -> PairTokens:
        return torch.zeros(packed_mask(batch).shape)


def _largest_chunk(module: LitPreference | LitReward, batch: PairBatch, parallelism: Parallelism) -> PairBatch:
    """Return what goes through the model at once: the batch, or the largest of its chunks."""
    batch_level = module.task == "preference" and module.objective.needs.batch_level
    most = module.readers.how.chunk_tokens(parallelism.device, batch_level)
    sizes = batch.attention_mask.sum((1, 2)).tolist()
    if not 0 < most < sum(sizes) or len(sizes) == 1:
        return batch
    ends = even_ends(sizes, min(math.ceil(sum(sizes) / most), len(sizes)))
    chunks = (batch.rows(slice(*bounds)) for bounds in pairwise((0, *ends)))
    return max(chunks, key=lambda chunk: int(chunk.mask.sum()))


def _head_gradient(module: LitPreference | LitReward) -> int:
    """Return the bytes of the output head's gradient that a ``HeadGradientAccumulator`` holds outside of ``.grad``."""
    if module.task == "reward" or module.objective.needs.batch_level:
        return 0
    head = output_head(module.policy)
    if head is None or not is_linear(head):
        return 0
    weight, embedding = head.get_parameter("weight"), base_of(module.policy).get_input_embeddings()
    return weight.nbytes if weight.requires_grad and weight is not embedding.weight else 0


# ── steps on rollouts ───────────────────────────────────────────────────────────────────────────────────────────


def _online_step(module: LitOnline, batch: PairBatch, dry_run: DryRun) -> tuple[dict[Phase, Memory], int, int]:
    """Return the memory of each phase of a rollout and its steps; operations and tokens of one of these steps."""
    settings = module.settings
    module.policy.eval()
    cache, writing, rollout_operations = write_responses(module, batch, dry_run)
    scoring, scoring_operations = dry_run.in_first_layout(partial(_score_responses, module, batch, dry_run))
    module.policy.train()
    minibatch = math.ceil(len(batch.index) / settings.minibatches)
    part = longest_responses(batch, min(minibatch, settings.micro_batch))
    step, operations = dry_run.train(partial(_update_loss, module, part), is_part=minibatch > settings.micro_batch)
    tokens, part_tokens = (int(responses.attention_mask.sum()) for responses in (batch, part))
    operations = operations * tokens // part_tokens // settings.minibatches
    operations += (rollout_operations + scoring_operations) // settings.steps
    phases: dict[Phase, Memory] = {"writing": dry_run.rollout(writing, cache), "scoring": dry_run.rollout(scoring)}
    return phases | step, operations, tokens // settings.minibatches


def _update_loss(module: LitOnline, batch: PairBatch) -> Tensor:
    """Compute a loss that takes an update's memory; the objective's own arithmetic is a few numbers per token."""
    reader = module.readers.of(module.policy, batch)
    loss = reader.fused_loss(batch, lambda responses, logps: logps.policy.sum()).loss
    if module.value_model is not None:
        loss = loss + module.readers.values(module.value_model, batch).sum()
    return loss


def longest_responses(batch: PairBatch, rows: int) -> PairBatch:
    """Return the longest responses of a rollout, prompts included."""
    lengths = batch.attention_mask.flatten(1).sum(-1)
    return batch.rows(lengths.argsort(descending=True, stable=True)[:rows])


def write_responses(module: LitOnline, batch: PairBatch, dry_run: DryRun) -> tuple[int, int, int]:
    """Measure the writing of a rollout: bytes of keys and values, peak of what is beside them, operations.

    A pass over the prompts, each read once for all its responses, is followed by one for each token, of which the
    first and the last are run; operations in between grow evenly. A generator without a ``batch_size`` is taken to
    write all responses at once. An opponent writes as many; a mixture has a cache and logits of both of its models.

    Args:
        module: with fake weights.
        batch: responses of full length, side axis of 1.
        dry_run: measures passes of the models.
    """
    rows = min(len(batch.index), getattr(module.generator, "batch_size", len(batch.index)))
    group, new_tokens = longest_responses(batch, rows), module.settings.sampling.max_new_tokens
    prompt = int((group.attention_mask & ~group.mask).sum(-1).max())
    config = base_of(module.policy).config.get_text_config(decoder=True)
    cache = DynamicCache(config=config)
    responses = module.settings.responses if prompt > 1 else 1
    shared = int(responses > 1)  # then the last token of a prompt is read again for each response
    prompts, written = math.ceil(rows / responses), 0
    peak, prefilled = dry_run.read(partial(_write_token, module, cache, prompts, prompt - shared))
    passes = new_tokens - 1 + shared
    if passes:
        if shared:
            dry_run.read(lambda: cache.batch_select_indices(torch.arange(rows) // responses))
        first_peak, first = dry_run.read(partial(_write_token, module, cache, rows, 1), _keys_and_values(cache))
        cache = DynamicCache(config=config)
        dry_run.read(partial(_write_token, module, cache, rows, prompt + new_tokens - 2))
        last_peak, last = dry_run.read(partial(_write_token, module, cache, rows, 1), _keys_and_values(cache))
        peak = max(peak, first_peak, last_peak)
        written = passes * (first + last) // 2
    cached = sum_bytes(_keys_and_values(cache))
    mixes = module.opponent is not None and 0 < module.opponent.share < 1
    writers = 1 + (module.opponent is not None) + mixes
    operations = writers * (prefilled + written) * len(batch.index) / rows
    if module.settings.needs.greedy:
        operations += (prefilled / prompts + written / rows) * len(batch.index) / module.settings.responses
    beside = max(0, peak - cached) + mixes * 4 * rows * config.vocab_size
    return cached * (1 + mixes), beside, int(operations)


def _keys_and_values(cache: Any) -> Iterator[Tensor]:
    parts = (part for layer in cache.layers for part in (layer.keys, layer.values))
    return (part for part in parts if part is not None)


def _write_token(module: LitOnline, cache: Any, rows: int, tokens: int) -> None:
    """Read tokens behind those in the cache, and choose the next one, as ``generate`` does."""
    policy: Any = module.policy
    sampling = module.settings.sampling
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    attention = torch.ones(rows, cache.get_seq_length() + tokens, dtype=torch.int64)
    accepted = inspect.signature(base_of(policy).forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    output = policy(input_ids=ids, attention_mask=attention, past_key_values=cache, use_cache=True, **options)
    logits = output.logits[:, -1].to(copy=True, dtype=torch.float32)
    RowSampling(torch.zeros(rows, sampling.max_new_tokens, dtype=torch.float64), sampling)(ids, logits).argmax(-1)


def _score_responses(module: LitOnline, batch: PairBatch, dry_run: DryRun) -> tuple[int, int]:
    """Measure how every model reads a rollout: the peak in bytes, and the operations."""
    micro_batch, score_model = module.settings.micro_batch, module.score.model
    readings: list[tuple[Callable[[PairBatch], object], int, float]] = [
        (partial(module.readers.read, module.policy), micro_batch, 1)
    ]
    if module.reference is not None:
        readings.append((module.reference.log_probs, micro_batch, 1))
    if module.value_model is not None:
        readings.append((partial(module.readers.values, module.value_model), micro_batch, 1))
    if score_model is not None:
        rows = getattr(module.score, "batch_size", micro_batch)
        scored = 1 + (module.opponent is not None) + module.settings.needs.greedy / module.settings.responses
        readings.append((partial(module.readers.scores, score_model), rows, scored))
    peak = operations = 0
    for read, rows, times in readings:
        part = longest_responses(batch, rows)
        part_peak, part_operations = dry_run.read(partial(read, part))
        peak = max(peak, part_peak)
        operations += math.ceil(part_operations * times * len(batch.index) / len(part.index))
    return peak, operations
