"""A measurement: one side trains on the work in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarking.work import Work

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).resolve().parent / "parts"
LEARNING_RATE = "1e-5"
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """An objective of both sides.

    Args:
        name: in tables.
        objective: our preset.
        beta: β on both sides.
        loss: TRL's ``loss_type``; None where TRL has no such loss.
        cached: whether the reference's log-probabilities are precomputed.
        lora: rank of an adapter, drawn at random on each side, so that losses are not compared; 0 trains all weights.
        everywhere: whether TRL is measured in all its settings, not only on our batches.
    """

    name: str
    objective: str
    beta: float
    loss: str | None
    cached: bool = False
    everywhere: bool = False
    lora: int = 0


CASES = {
    case.name: case
    for case in (
        Case("dpo", "dpo", 0.1, "sigmoid", everywhere=True),
        Case("dpo-cached", "dpo", 0.1, "sigmoid", cached=True, everywhere=True),
        Case("dpo-lora", "dpo", 0.1, "sigmoid", everywhere=True, lora=16),
        Case("averaged_dpo", "averaged_dpo", 1.0, "sigmoid_norm"),
        Case("ipo", "ipo", 0.1, "ipo"),
        Case("sr_dpo", "sr_dpo", 0.1, None),
        Case("sr_dpo-cached", "sr_dpo", 0.1, None, cached=True),
    )
}


@dataclass(frozen=True)
class Side:
    """A program that trains, and how it splits the batch of an optimizer step.

    Args:
        name: in tables.
        python: interpreter.
        split: whether gradients are accumulated over single pairs.
        shuffled: whether the pairs are in a random order instead of ours.
        plain: whether it is the plain loop instead of TRL.
    """

    name: str
    python: str
    split: bool = False
    shuffled: bool = False
    plain: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is our side."""
        return self.name == "ours"


@dataclass(frozen=True)
class Device:
    """The device of both sides, the threads of a CPU, and whether products are in bfloat16, by autocast."""

    name: str = "cpu"
    threads: int = 1
    bfloat16: bool = False


@dataclass(frozen=True)
class Result:
    """Time and memory of a process.

    Args:
        seconds: wall time of the measured steps: all but the first.
        user: user CPU time of these steps.
        startup: seconds from the start of the process to the first step, without the reference's precomputation.
        wall: wall time of the whole process.
        peak: peak memory in MiB, resident or allocated on the GPU.
        phases: seconds of each part, over all steps.
        losses: of each step.
    """

    seconds: float
    user: float
    startup: float
    wall: float
    peak: float
    phases: dict[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()


def measure(side: Side, case: Case, work: Work, model: str, device: Device) -> Result:
    """Measure a side once.

    Raises:
        SystemExit: its process failed; the message ends with the process's output.
    """
    with TemporaryDirectory(dir=work.folder) as scratch:
        folder = Path(scratch)
        command = (_ours if side.ours else _theirs)(side, case, work, model, device, folder)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(device.threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "THP_MEM_ALLOC_ENABLE": "1",
            "PYTHONPATH": str(ROOT) if side.ours else "",
        }
        log = folder / "log.txt"
        began = time.time()
        with log.open("wb") as output:
            child = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        ended = time.time()
        if child.returncode:
            sys.exit(f"{side.name}, {case.name} ended with {child.returncode}:\n{log.read_text('utf-8')[-4000:]}")
        measured = json.loads((folder / "measured.json").read_text("utf-8"))
        losses = measured.get("losses") or _losses(folder / "run" / "metrics.jsonl")
        first, last = measured["steps"][1], measured["steps"][-1]
        return Result(
            seconds=last["wall"] - first["wall"],
            user=last["user"] - first["user"],
            startup=measured["steps"][0]["wall"] - began - measured["phases"].get("precompute", 0.0),
            wall=ended - began,
            peak=measured["device_peak"] or usage.ru_maxrss * 1024 / MIB,
            phases=measured["phases"],
            losses=tuple(losses),
        )


def imports(python: str) -> tuple[float, float]:
    """Measure wall and user CPU time, in seconds, of the imports that every run needs."""
    began = time.time()
    child = subprocess.Popen([python, "-c", "import torch, transformers, lightning.pytorch"])
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return time.time() - began, usage.ru_utime


def _losses(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def _ours(side: Side, case: Case, work: Work, model: str, device: Device, folder: Path) -> Sequence[str]:
    """Write a configuration and return the command of ``fit``."""
    reference: dict[str, Any] = {"class_path": "Precomputed", "init_args": {"cache": str(folder / "cache")}}
    config = {
        "run": str(folder / "run"),
        "seed_everything": 0,
        "extend": str(PARTS),
        "model": {
            "policy": str(work.models[model]),
            "objective": {
                "class_path": f"lit_align.objectives.{case.objective}",
                "init_args": {"beta": case.beta},
            },
            "optimizer": {
                "class_path": "torch.optim.AdamW",
                "init_args": {"lr": float(LEARNING_RATE), "weight_decay": 0.0, "fused": True},
            },
            "schedule": "Constant",
            **({"reference": reference} if case.cached else {}),
            **({"lora": {"rank": case.lora, "alpha": case.lora, "dropout": 0.0}} if case.lora else {}),
        },
        "data": {"train": str(work.pairs), "batch_size": work.batch, "max_length": work.max_length, "render": "text"},
        "trainer": {
            "accelerator": "gpu" if device.name == "cuda" else "cpu",
            "devices": 1,
            "precision": "bf16-mixed" if device.bfloat16 else "32-true",
            "max_epochs": 1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": str(folder), "filename": "profile"}},
            "callbacks": [{"class_path": "clock.Clock", "init_args": {"path": str(folder / "measured.json")}}],
        },
        "samples": {"count": 0},
        "export": {"form": "none"},
    }
    file = folder / "config.yaml"
    file.write_text(json.dumps(config, indent=2), "utf-8")
    return [side.python, "-m", "lit_align", "fit", "--config", str(file), "--extend", str(PARTS)]


def _theirs(side: Side, case: Case, work: Work, model: str, device: Device, folder: Path) -> Sequence[str]:
    settings = {
        "model": work.models[model],
        "pairs": work.shuffled if side.shuffled else work.ordered,
        "out": folder / "measured.json",
        "folder": folder / "trl",
        "loss": case.loss,
        "beta": case.beta,
        "batch": 1 if side.split else work.batch,
        "accumulate": work.batch if side.split else 1,
        "max-length": work.max_length,
        "learning-rate": LEARNING_RATE,
        "device": device.name,
        "lora": case.lora,
    }
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    script = str(Path(__file__).with_name("plain_side.py" if side.plain else "trl_side.py"))
    flags = {"--cached": case.cached, "--bfloat16": device.bfloat16}
    return [side.python, script, *options, *(flag for flag, given in flags.items() if given)]
