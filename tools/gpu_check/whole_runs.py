"""Stages that run commands as a user does: repeated runs, and a real model on real data."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from beside_trl import MISSING, has_trl, run_on_texts
from common import DEVICE, TINY, WORK, Record, command

TRAINER = [
    *("--trainer.accelerator", "gpu" if DEVICE == "cuda" else "cpu", "--trainer.devices", "1"),
    *("--trainer.precision", "bf16-mixed", "--trainer.enable_progress_bar", "false"),
    *("--samples.count", "0", "--export.form", "none"),
]
PAIRS = ["--model.objective", "averaged_dpo", "--data.train", "testbed:train"]
ONLINE = [
    *("--task", "online", "--model.objective", "conditional_pm_rlhf", "--data.train", "testbed:train"),
    *("--model.score.class_path", "KnownScore", "--model.score.init_args.score", "TestbedScore"),
    *("--model.sampling.max_new_tokens", "16"),
]
PREPARING = Path(".gpu/smollm2.part")
"""The folder of the model until it is whole."""
DETERMINISTIC = ["--trainer.deterministic", "true"]
REPORTED = ("train/loss", "train/rewards/accuracies", "train/throughput/tokens_per_second", "val/rewards/accuracies")


def again(record: Record) -> None:
    """The same run twice, of pairs and on-policy, with and without deterministic algorithms; and a resumed one."""
    steps = "6" if not TINY else "2"
    base = ["--model.policy", "testbed:policy", "--data.batch_size", "16", "--model.schedule", "Constant", *TRAINER]
    work = WORK / "gpu_check_again"

    def fit(name: str, *words: str) -> str:
        command("fit", *base, "--trainer.max_steps", steps, *words, "--run", f"{work}/{name}")
        return _digest(work / name)

    def twice(name: str, words: list[str]) -> dict[str, Any]:
        digests = [fit(f"{name.replace(' ', '_')}_{number}", *words) for number in (1, 2)]
        return {"equal": digests[0] == digests[1], "digests": digests}

    def resumed() -> dict[str, Any]:
        half = str(int(steps) // 2)
        fit("resumed", *PAIRS, *DETERMINISTIC, "--trainer.max_steps", half)
        whole = _digest(work / "dpo_exact_1")
        return {"equal": fit("resumed", *PAIRS, *DETERMINISTIC, "--ckpt_path", "last") == whole}

    runs = {"dpo": PAIRS, "online": ONLINE}
    for name, words in runs.items():  # what is promised comes first
        exactly = [*words, *DETERMINISTIC]
        record.attempt(f"{name} deterministic", lambda name=name, words=exactly: twice(f"{name} exact", words))
    record.attempt("resumed half-way, deterministic", resumed)
    for name, words in runs.items():
        record.attempt(name, lambda name=name, words=words: twice(name, words))


def _digest(run: Path) -> str:
    state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _appears(path: Path, within: float = 60.0 if not TINY else 600.0) -> bool:
    """Wait for a file of a folder that another process may still prepare, as long as it gives a sign of that."""
    until = time.monotonic() + within
    while not path.exists() and PREPARING.exists() and time.monotonic() < until:
        time.sleep(0.5)
    return path.is_file()


def smol(record: Record) -> None:
    """SmolLM2-135M-Instruct on HH, as a user runs it, and with TRL."""
    model = os.environ.get("GPU_CHECK_MODEL", ".gpu/smollm2")
    data = os.environ.get("GPU_CHECK_DATA", ".gpu/a/hh_harmless_base_test.jsonl.gz")
    if not _appears(Path(model, "config.json")):
        record.add(case="smollm2", error=f"no model in {model}; see .gpu/smol.log")
        return
    steps, batch, interval = (120, 16, 60) if not TINY else (2, 2, 1)
    settings = [
        *("--data.train", data, "--data.format", "hh", "--data.holdout", "0.1", "--data.batch_size", str(batch)),
        *("--data.max_length", "1024", "--model.optimizer.lr", "5e-6", "--trainer.val_check_interval", str(interval)),
        *("--trainer.max_steps", str(steps)),
        *("--data.on_bad_row", "drop", "--data.max_dropped", "0.05"),  # some responses are blank
    ]

    def run(name: str, words: list[str]) -> dict[str, Any]:
        folder, began = WORK / f"smol_{name}", time.perf_counter()
        printed = command("fit", "--model.policy", model, *words, *settings, *TRAINER, "--run", str(folder))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = {key: [line[key] for line in lines if key in line] for key in REPORTED}
        first = {key: row[0] for key, row in values.items() if len(row) > 1}
        last = {key: row[-1] for key, row in values.items() if row}
        warned = [line for line in printed.splitlines() if "forward_pass" in line][:5]
        return {"seconds": round(time.perf_counter() - began, 1), "first": first, "last": last, "warned": warned}

    for name, more in (("averaged_dpo", []), ("sr_dpo", ["--model.reference", "Precomputed"])):
        words = ["--model.objective", name, *more]
        record.attempt(name, lambda name=name, words=words: run(name, words))
    trl = "TRL, sigmoid_norm"
    record.attempt(trl, lambda: run_on_texts(model, data, steps, batch) if has_trl() else dict(MISSING))
