"""Stages about single computations: the environment, exactness of each way of reading, forms of attention."""

from __future__ import annotations

import importlib.metadata
import inspect
import math
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from common import DEVICE, SMALL, TINY, Record, batch_of, llama, peak_gib, sync

from lit_align.models import ForwardPass, LogProbReader, choose_layout
from lit_align.types import PairBatch, PairLogProbs

COMPILED = "flex_attention"
FLASH = ("flash_attention_2",) if find_spec("flash_attn") else ()
PACKAGES = (
    *("torch", "transformers", "lightning", "peft", "datasets", "jsonargparse", "trl", "liger_kernel", "flash_attn"),
    "triton",
)


def environment(record: Record) -> None:
    """Versions, the card, a product in bfloat16 and a copy: is this the machine that it seems to be?"""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    record.add(case="versions", python=sys.version.split()[0], **versions)
    told = {key: os.environ.get(f"GPU_CHECK_{key.upper()}") for key in ("commit", "tests", "driver")}
    record.add(case="told by run.sh", **told)
    if DEVICE != "cuda":
        return
    record.add(case="device", name=torch.cuda.get_device_name(), gib=torch.cuda.mem_get_info()[1] / 2**30)
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    record.add(case="matmul", tflops=2 * 8192**3 / _seconds(lambda: matrix @ matrix) / 1e12)
    source = torch.empty(2**30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    record.add(case="copy", tb_s=2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e12)


def _seconds(work: Callable[[], Any], times: int = 10) -> float:
    for _ in range(3):
        work()
    sync()
    began = time.perf_counter()
    for _ in range(times):
        work()
    sync()
    return (time.perf_counter() - began) / times


# ── exactness ───────────────────────────────────────────────────────────────────────────────────────────────────────


def dpo_like(pairs: slice, logps: PairLogProbs) -> torch.Tensor:
    sums = logps.policy.sum(-1)
    return -F.logsigmoid(0.1 * (sums[:, 0] - sums[:, 1])).sum()


def _truth(batch: PairBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return log-probabilities and gradients of a loop in float64, one sequence at a time, with whole logits."""
    model = llama(torch.float32, **SMALL).double()
    shape = (len(batch.index), 2, int(batch.lengths.max()))
    values = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    for pair in range(shape[0]):
        for side in range(2):
            present = batch.attention_mask[pair, side]
            ids = batch.input_ids[pair, side][present].unsqueeze(0)
            logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            scored = logs[batch.mask[pair, side][present][1:]]
            values[pair, side, : len(scored)] = scored
    dpo_like(slice(None), PairLogProbs(values, None, values.detach() < 0)).backward()
    return values.detach(), [weight.grad.clone() for weight in model.parameters()]


def exact(record: Record) -> None:
    """Log-probs and gradients of each way of reading, against a float64 loop on the device; and what auto chooses."""
    sizes = (6, 120, 80) if not TINY else (3, 12, 8)
    batch = batch_of(*sizes, SMALL["vocab_size"]).to(DEVICE)
    values, grads = _truth(batch)
    norm = math.sqrt(sum(float(grad.norm()) ** 2 for grad in grads))

    def error(log_probs: torch.Tensor) -> float:
        return float((log_probs.detach().double() - values).norm() / values.norm())

    def read(attention: str, layout: Any, precision: str) -> dict[str, Any]:
        model = llama(torch.bfloat16 if precision == "bf16" else torch.float32, attention, **SMALL)
        reader = LogProbReader(model, ForwardPass(tile_mb=1.0))
        reader.use(layout)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False):
            two_pass = reader(batch).policy
            if not reader.fuses:
                dpo_like(slice(None), reader(batch)).backward()
                one_pass = two_pass
            else:
                output = reader.fused_loss(batch, dpo_like)
                output.loss.backward()
                one_pass = output.logps.policy
            path = reader.path(torch.device(DEVICE))[0] if layout in ("shared", "packed") else ""
        pairs = zip(model.parameters(), grads, strict=True)
        apart = math.sqrt(sum(float((weight.grad.double() - grad).norm()) ** 2 for weight, grad in pairs))
        numbers = {"log_probs": error(two_pass), "one_pass": error(one_pass), "gradient": apart / norm}
        return numbers | {"path": path}

    def choose(*names: str) -> None:
        for name in names:
            record.attempt(f"choice {name}", lambda name=name: _chosen(name, batch))

    choose("sdpa")
    ways = [(*way, precision) for precision in ("fp32", "bf16-mixed", "bf16") for way in _ways(precision)]
    for way in sorted(ways, key=lambda way: way[0] == COMPILED):  # takes longest
        record.attempt(f"{way[2]} {way[0]} {way[1]}", lambda way=way: read(*way))
    if not TINY:
        choose(*FLASH, COMPILED)


def _ways(precision: str) -> list[tuple[str, str]]:
    ways = []
    for attention in ("sdpa",) if TINY else ("sdpa", *FLASH, "eager", COMPILED):
        flash = attention in FLASH
        if not (flash and precision == "fp32"):
            layouts = ("plain", "padded", "packed") if flash else ("plain", "padded", "packed", "shared")
            ways += [(attention, layout) for layout in layouts]
    return ways


def _chosen(attention: str, batch: PairBatch) -> dict[str, Any]:
    reader = LogProbReader(llama(torch.float32, attention, **SMALL))
    with torch.autocast(DEVICE, torch.bfloat16):
        choice = choose_layout(reader, batch)
    return {"layout": choice.layout, "warnings": list(choice.warnings)}


# ── attention ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Layer:
    """One layer's attention over pairs that share their prompts, in each form that a device may have."""

    def __init__(self) -> None:
        self.heads, self.kv, self.size = (32, 8, 64) if not TINY else (4, 2, 16)
        self.pairs, self.prompt, self.response = (8, 1024, 512) if not TINY else (2, 16, 8)
        self.first = self.prompt + self.response
        self.width = self.first + self.response
        place = torch.arange(self.width, device=DEVICE)
        position = torch.where(place < self.first, place, place - self.response)
        second = place >= self.first
        same = (second[:, None] == second[None]) | (second[:, None] & (place < self.prompt)[None])
        mask = (position[:, None] >= position[None]) & same
        self.mask = mask.expand(self.pairs, 1, self.width, self.width).contiguous()
        self.additive = torch.zeros(self.mask.shape, device=DEVICE, dtype=torch.bfloat16)
        self.additive.masked_fill_(~self.mask, float("-inf"))
        self.place = place
        self.parts = [self._random(count) for count in (self.heads, self.kv, self.kv)]

    def _random(self, heads: int) -> torch.Tensor:
        shape = (self.pairs, heads, self.width, self.size)
        return torch.randn(shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def dense(self, mask: torch.Tensor) -> torch.Tensor:
        """Read whole rows, with keys and values repeated for each head."""
        query, *others = self.parts
        key, value = (part.repeat_interleave(self.heads // self.kv, dim=1) for part in others)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def padded(self) -> torch.Tensor:
        """Read every sequence by itself, prompts twice, with a causal flag and no mask."""
        parts = [
            torch.cat([p[:, :, : self.first], torch.cat([p[:, :, : self.prompt], p[:, :, self.first :]], 2)])
            for p in self.parts
        ]
        return F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)

    def varlen(self) -> torch.Tensor:
        """Read first segments, and second ones with keys of the prompt and their own, causal from the bottom right."""
        from torch.nn.attention.varlen import varlen_attn

        gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
        flat = [part.transpose(1, 2).reshape(-1, part.shape[1], self.size) for part in self.parts]
        starts = torch.arange(self.pairs, device=DEVICE)[:, None] * self.width
        second = torch.cat([self.place[: self.prompt], self.place[self.first :]])
        keys = torch.cat([starts + self.place[None, : self.first], starts + second[None]], 1).flatten()
        ends = [
            F.pad(torch.tensor(sizes * self.pairs, device=DEVICE).cumsum(0), (1, 0)).to(torch.int32)
            for sizes in ((self.first, self.response), (self.first, self.first))
        ]
        longest = (self.first, self.first)
        out = varlen_attn(flat[0], flat[1][keys], flat[2][keys], *ends, *longest, window_size=(-1, 0), **gqa)
        return out.view(self.pairs, self.width, self.heads, self.size).transpose(1, 2)

    def flex(self) -> Callable[[], torch.Tensor]:
        """Return compiled FlexAttention with the block mask of one pair."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        mask = self.mask[0, 0]
        sizes = (None, None, self.width, self.width)
        block = create_block_mask(lambda b, h, query, key: mask[query, key], *sizes, device=DEVICE)
        run = torch.compile(flex_attention)
        return lambda: run(*self.parts, block_mask=block, enable_gqa=True)


def attention(record: Record) -> None:
    """Forward and backward pass of one layer's attention in each form: which path shall a GPU get?"""
    layer = Layer()
    truth = layer.dense(layer.mask).detach().float()

    def timed(call: Callable[[], torch.Tensor]) -> dict[str, Any]:
        def once() -> torch.Tensor:
            for part in layer.parts:
                part.grad = None
            out = call()
            out.backward(torch.ones_like(out))
            return out.detach()

        seconds, out = _seconds(once, 1 if TINY else 10), once()
        numbers = {"ms": round(1000 * seconds, 3), "peak_gib": round(peak_gib(), 3)}
        same = out.shape == truth.shape
        return numbers | ({"apart": float((out.float() - truth).norm() / truth.norm())} if same else {})

    record.attempt("dense boolean mask, keys repeated", lambda: timed(lambda: layer.dense(layer.mask)))
    record.attempt("dense additive mask", lambda: timed(lambda: layer.dense(layer.additive)))
    record.attempt("padded rows, causal", lambda: timed(layer.padded))
    if not TINY:
        record.attempt("varlen of torch, prompts shared", lambda: timed(layer.varlen))
        record.attempt("flex, rows", lambda: timed(layer.flex()))
