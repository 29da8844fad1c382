"""A plain loop in place of a trainer: padded rows, whole logits, what a tutorial on DPO shows."""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


def mark() -> dict[str, float]:
    """Return wall time and CPU time as of now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"wall": time.time(), "user": used.ru_utime, "system": used.ru_stime}


def batches(rows: list[dict[str, str]], tokenizer: Any, size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return ids, attention mask and response mask of each batch: all chosen responses, then all rejected ones."""
    found = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        prompts = [tokenizer(row["prompt"])["input_ids"] for row in part] * 2
        texts = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in part]
        sequences = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
        width = max(map(len, sequences))
        ids, mask, response = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(3))
        for row, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
            response[row, len(prompt) : len(sequence)] = 1
        found.append((ids, mask, response))
    return found


def log_probs(model: Any, ids: Tensor, mask: Tensor, response: Tensor) -> Tensor:
    """Return the summed log-probability of each response."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return (tokens * response[:, 1:]).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "pairs", "out", "loss", "folder", "device"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("beta", "learning-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    for name in ("batch", "accumulate", "max-length", "lora"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--bfloat16", action="store_true")
    arguments = parser.parse_args()
    products = torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16)
    model, reference = (AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32) for _ in range(2))
    reference.eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = [json.loads(line) for line in Path(arguments.pairs).read_text("utf-8").splitlines()]
    data = batches(rows, tokenizer, arguments.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.0, fused=True)
    steps, losses = [mark()], []
    for batch in data:
        with products:
            with torch.no_grad():
                before = log_probs(reference, *batch)
            chosen, rejected = (log_probs(model, *batch) - before).chunk(2)
        loss = -F.logsigmoid(arguments.beta * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        steps.append(mark())
    measured = {"steps": steps, "phases": {}, "losses": losses, "device_peak": None}
    Path(arguments.out).write_text(json.dumps(measured), "utf-8")


if __name__ == "__main__":
    main()
