"""Stages about time and memory: steps of a run beside a padded loop, sampling, compiled layers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from beside_trl import MISSING, has_trl, steps_on
from common import DEVICE, EIGHT_B, ONE_B, TINY, Record, batch_of, llama, peak_gib, sync
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lit_align.compat.transformers import recompute_activations
from lit_align.models import ForwardPass, LoRA
from lit_align.models.generation import CachedGenerator, GenerationRequest
from lit_align.models.narrow import narrowed
from lit_align.models.sampling import Sampling
from lit_align.modules import LitPreference
from lit_align.objectives import dpo
from lit_align.strategies import strategy_of
from lit_align.types import PairBatch

PEAK = 790e12
"""Dense products in bfloat16 per second of a Hopper card, as it was measured on other code."""
WARM = 3


class Clock(Callback):
    """The end of every optimizer step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    @override
    def on_train_batch_end(self, *ignored: Any) -> None:
        sync()
        self.marks.append(time.perf_counter())


class Direct(LitPreference):
    """The module as a run has it, with a policy that is there already."""

    make: Callable[[], Any]

    @override
    def build_trained_model(self) -> Any:
        model = self.make()
        return model if self.lora is None else self.lora.wrap(model)


def ours(batches: Sequence[PairBatch], how: ForwardPass, **options: Any) -> dict[str, Any]:
    """Take steps of ``fit`` on batches that are there; the first three warm up.

    Options: ``shape``, ``dtype``, ``attention``, ``lora``, ``strategy``.
    """
    lora, dtype = options.get("lora"), options.get("dtype", torch.float32)
    module = Direct("testbed:policy", dpo(), lora=lora, optimizer=_adamw, forward_pass=how)
    module.make = lambda: llama(dtype, options.get("attention", "sdpa"), **options.get("shape", ONE_B))
    clock = Clock()
    trainer = Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=-1,
        max_steps=len(batches),
        logger=False,
        callbacks=[clock],
        strategy=options.get("strategy", "auto"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        log_every_n_steps=1000,
    )
    trainer.fit(module, DataLoader(batches, batch_size=None, pin_memory=DEVICE == "cuda"))
    loss = trainer.callback_metrics.get("train/loss", math.nan)
    numbers = _numbers(clock.marks, batches, module.policy, lora is not None)
    reader = module.readers.of(module.policy, batches[0])
    with torch.autocast(DEVICE, torch.bfloat16):
        path = reader.path(torch.device(DEVICE))[0] if reader.layout in ("shared", "packed") else ""
    return numbers | {"layout": reader.layout, "path": path, "loss": float(loss)}


def _adamw(params: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr=1e-6, weight_decay=0.0, fused=not TINY)


def _numbers(marks: list[float], batches: Sequence[PairBatch], model: nn.Module, adapter: bool) -> dict[str, Any]:
    warm = min(WARM, len(marks) - 1)
    steps = [after - before for before, after in zip(marks[warm - 1 :], marks[warm:], strict=False)]
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches[warm:]) / len(batches[warm:])
    named = model.named_parameters()
    weights = sum(weight.numel() for name, weight in named if "embed" not in name and "lora" not in name)
    seconds = sorted(steps)[len(steps) // 2]
    work = (4 if adapter else 6) * weights + 2 * weights  # of the policy, and of the reference's forward pass
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "tokens": tokens,
        "mfu": round(work * tokens / seconds / PEAK, 3),
        "peak_gib": round(peak_gib(), 2),
        "steps": [round(step, 4) for step in steps],
    }


def by_hand(batches: Sequence[PairBatch], checkpointing: bool = False) -> dict[str, Any]:
    """Do what TRL does: both sides as padded rows, logits of every token, a second model beside it."""
    model, reference = llama(**ONE_B).train(), llama(**ONE_B).requires_grad_(False)
    if checkpointing:
        recompute_activations(model)
    optimizer, marks = _adamw(model.parameters()), []
    for batch in batches:
        moved = batch.to(DEVICE)
        rows = [part.flatten(0, 1) for part in (moved.input_ids, moved.attention_mask, moved.mask)]
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            with torch.no_grad():
                frozen = _padded_sums(reference, *rows)
            ratio = _padded_sums(model, *rows) - frozen
            loss = -F.logsigmoid(0.1 * (ratio[:, 0] - ratio[:, 1])).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sync()
        marks.append(time.perf_counter())
    return _numbers(marks, batches, model, False) | {"loss": float(loss.detach())}


def by_trl(batches: Sequence[PairBatch]) -> dict[str, Any]:
    """Let TRL itself do it."""
    marks, model, loss = steps_on(batches, ONE_B)
    return _numbers(marks, batches, model, False) | {"loss": loss}


def _padded_sums(model: nn.Module, ids: torch.Tensor, attention: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, attention_mask=attention.long(), use_cache=False).logits[:, :-1]
    targets = zip(logits, ids[:, 1:], strict=True)
    picked = torch.stack([row.float().log_softmax(-1).gather(1, target[:, None])[:, 0] for row, target in targets])
    return (picked * mask[:, 1:]).sum(-1).view(-1, 2)


def _batches() -> list[PairBatch]:
    sizes = (8, 1024, 512) if not TINY else (2, 16, 12)
    return [batch_of(*sizes, ONE_B["vocab_size"], seed) for seed in range(8 if not TINY else 2)]


def _how(**options: Any) -> ForwardPass:
    return ForwardPass(**({"tokens_at_once": 0} | options))


def speed(record: Record) -> None:
    """DPO on a random Llama of 1B and 8B; the most telling first, since a cut-off leaves these."""
    batches = _batches()
    record.attempt("1b ours, as it comes", lambda: ours(batches, _how()))
    record.attempt("1b by hand, padded", lambda: by_hand(batches))
    record.attempt("1b TRL", lambda: by_trl(batches) if has_trl() else dict(MISSING))
    if TINY:
        return
    for tile in (64.0, 256.0, 1024.0, 2048.0):
        record.attempt(f"1b ours, tile_mb {tile:g}", lambda tile=tile: ours(batches, _how(tile_mb=tile)))
    lora: dict[str, Any] = {"shape": EIGHT_B, "dtype": torch.bfloat16, "lora": LoRA(rank=16)}
    record.attempt("8b lora bf16, ours", lambda: ours(batches[:6], _how(), **lora))
    long = [batch_of(1, 2730, 2730, ONE_B["vocab_size"], seed) for seed in range(4)]
    record.attempt("8b lora bf16, pairs of up to 2 x 8,190 tokens", lambda: ours(long, _how(), **lora))
    record.attempt("1b flex_attention", lambda: ours(batches, _how(), attention="flex_attention"))
    for layout in ("packed", "padded"):
        record.attempt(f"1b {layout}", lambda layout=layout: ours(batches, _how(layout=layout)))
    record.attempt("1b fsdp on one GPU", lambda: ours(batches, _how(), strategy=strategy_of("fsdp")))
    record.attempt("1b chunks of 8192", lambda: ours(batches, _how(tokens_at_once=8192)))
    record.attempt("1b by hand, checkpointing", lambda: by_hand(batches, checkpointing=True))


def compiled(record: Record) -> None:
    """Batches of other widths through compiled code: no step but the first may take much longer than the median."""
    from torch._dynamo.utils import counters

    def case(attention: str, compile: bool) -> dict[str, Any]:
        counters.clear()
        torch._dynamo.reset()
        began = time.perf_counter()
        numbers = ours(_batches(), _how(compile=compile), attention=attention)
        graphs = {"frames": dict(counters["frames"]), "graphs": counters["stats"].get("unique_graphs")}
        return numbers | {"all_seconds": round(time.perf_counter() - began, 1)} | graphs

    if not TINY:
        record.attempt("flex_attention, eight widths", lambda: case("flex_attention", compile=False))
    record.attempt("compile", lambda: case("sdpa", compile=True))


def rollout(record: Record) -> None:
    """Sampling: float32 weights under autocast, as before and as a run does it, and bfloat16 weights."""
    prompts, new = (256, 128) if not TINY else (4, 6)
    generator, longest = torch.Generator().manual_seed(0), 256 if not TINY else 9
    requests = []
    for number in range(prompts):
        size = int(torch.randint(longest // 4, longest, (), generator=generator))
        ids = torch.randint(3, ONE_B["vocab_size"], (max(size, 2),), generator=generator)
        requests.append(GenerationRequest(ids.tolist(), number))

    def case(
        model: nn.Module, at_once: int, autocast: bool, narrow: bool = False, static: bool = False
    ) -> dict[str, Any]:
        generate = CachedGenerator(batch_size=at_once, static_cache=static)
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast, cache_enabled=False):
            generate(model, requests[:at_once], {2}, 0, Sampling(max_new_tokens=4))
            sync()
            began = time.perf_counter()
            if narrow:
                with narrowed(model):
                    responses = generate(model, requests, {2}, 0, Sampling(max_new_tokens=new))
            else:
                responses = generate(model, requests, {2}, 0, Sampling(max_new_tokens=new))
            sync()
        seconds, tokens = time.perf_counter() - began, sum(len(response.ids) for response in responses)
        step = 1000 * seconds / new / math.ceil(prompts / at_once)
        rate = {"tokens_per_second": round(tokens / seconds), "ms_per_step": round(step, 2)}
        return rate | {"peak_gib": round(peak_gib(), 2)}

    model: nn.Module = llama(**ONE_B)
    record.attempt("fp32 weights under autocast, 64 at once", lambda: case(model, 64, True))
    record.attempt("with one bf16 copy (as a run does it), 64 at once", lambda: case(model, 64, True, narrow=True))
    record.attempt("with one bf16 copy, 256 at once", lambda: case(model, 256, True, narrow=True))
    record.attempt(
        "keys and values of a fixed size, 64 at once", lambda: case(model, 64, True, narrow=True, static=True)
    )
    model.bfloat16()
    record.attempt("bf16 weights, 256 at once", lambda: case(model, 256, False))
