"""TRL on the same work: a DPOTrainer on batches that are there, and one on texts as its users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import DEVICE, TINY, WORK, llama, sync

from lit_align.types import PairBatch

TOOLS = Path(__file__).resolve().parents[1]
MISSING = {"skipped": "trl is not installed"}


def has_trl() -> bool:
    return find_spec("trl") is not None


def steps_on(batches: Sequence[PairBatch], shape: dict[str, int]) -> tuple[list[float], Any, float]:
    """Take optimizer steps of TRL's DPO, and return the time at the end of each, the model and the last loss.

    Its reference is a second model, as it would load it; rows of ids take the place of texts.
    """
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    marks: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        """The end of every optimizer step."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            """Mark it."""
            sync()
            marks.append(time.perf_counter())

    class OfIds(DPOTrainer):
        """Takes rows of ids, and keeps the losses."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            """Keep the loss of a step, on its device."""
            output = super().compute_loss(*args, **kwargs)
            losses.append((output[0] if isinstance(output, tuple) else output).detach())
            return output

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<start>": 1, "<end>": 2}, "<pad>")),
        **{"pad_token": "<pad>", "eos_token": "<end>"},
    )
    settings = DPOConfig(
        output_dir=str(WORK / "trl"),
        per_device_train_batch_size=len(batches[0].index),
        max_steps=len(batches),
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=not TINY,
        use_cpu=DEVICE == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    rows = [row for batch in batches for row in _rows(batch)]
    model = llama(**shape).train()
    trainer = OfIds(
        model=model,
        ref_model=llama(**shape),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.train()
    return marks, model, float(losses[-1])


def _rows(batch: PairBatch) -> list[dict[str, list[int]]]:
    rows = []
    for ids, present, scored in zip(batch.input_ids, batch.attention_mask, batch.mask, strict=True):
        sides = [ids[side][scored[side]].tolist() for side in range(2)]
        prompt = ids[0][present[0] & ~scored[0]].tolist()
        rows.append({"prompt_ids": prompt, "chosen_ids": sides[0], "rejected_ids": sides[1]})
    return rows


def run_on_texts(model: str, data: str, steps: int, batch: int) -> dict[str, Any]:
    """Train a real model with TRL on pairs of HH-RLHF, in a process of its own; the first step warms up."""
    sys.path.append(str(TOOLS))
    from benchmarking.work import read_pairs, write
    from transformers import AutoTokenizer

    encode, most = AutoTokenizer.from_pretrained(model), 1024
    pairs, tokens = [], []
    for pair in read_pairs(Path(data)):
        lengths = [len(encode(pair["prompt"] + pair[side])["input_ids"]) + 1 for side in ("chosen", "rejected")]
        if max(lengths) <= most and len(pairs) < steps * batch:
            pairs.append(pair)
            tokens.append(sum(lengths))
    folder = WORK / "trl_smol"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "pairs.jsonl", pairs)
    options = {
        **{"model": model, "pairs": folder / "pairs.jsonl", "out": folder / "measured.json", "folder": folder / "run"},
        **{"loss": "sigmoid_norm", "beta": 1.0, "batch": batch, "accumulate": 1, "max-length": most},
        **{"learning-rate": "5e-6", "device": DEVICE},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--bfloat16"] if DEVICE == "cuda" else []
    script = TOOLS / "benchmarking" / "trl_side.py"
    ended = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env={**os.environ})
    if ended.returncode:
        raise RuntimeError(ended.stderr[-400:])
    measured = json.loads((folder / "measured.json").read_text())
    marks = [mark["wall"] for mark in measured["steps"]]
    seconds, read = marks[-1] - marks[min(1, len(marks) - 2)], sum(tokens[batch if len(marks) > 2 else 0 :])
    peak = measured["device_peak"]
    return {
        "tokens_per_second": round(read / seconds),
        "seconds": round(seconds, 1),
        "loss": measured["losses"][-1],
        **({} if peak is None else {"peak_gib": round(peak / 1024, 2)}),
    }
