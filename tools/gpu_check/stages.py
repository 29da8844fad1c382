"""Stages of the check on a GPU: each in a forked child that writes what it has after every case.

    python tools/gpu_check/stages.py FILE [stage ...]        (GPU_CHECK_DEVICE=cpu: tiny shapes, to try the script)
    python tools/gpu_check/stages.py --report FILE           (Markdown of what a file holds)

The parent imports everything once and never touches the device, so that a stage that breaks it, hangs or runs out of
memory costs its own time only. If an import has opened the device all the same, stages are processes of their own,
which takes longer. The exit code is 1 if a stage was cut off or a case failed.
"""

from __future__ import annotations

import os

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # is_available() must not open the device in the parent
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("LIT_ALIGN_CACHE", ".gpu/cache")

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import PARTS, TINY, Record, exit_after, write_json
from computations import attention, environment, exact
from report import report
from timing import compiled, rollout, speed
from whole_runs import again, smol

STAGES: dict[str, tuple[Callable[[Record], None], float]] = {
    "environment": (environment, 30),
    "exact": (exact, 70),
    "attention": (attention, 40),
    "speed": (speed, 190),
    "smol": (smol, 130),
    "again": (again, 100),
    "rollout": (rollout, 60),
    "compiled": (compiled, 75),
}
"""Name to work and seconds on a GPU, by value: a cut-off leaves the first ones."""
LEAST = 15.0
"""Seconds that a stage needs to be worth its start."""


def run_stage(name: str, limit: float, merge: Callable[[], None]) -> dict[str, Any]:
    """Run a stage in a child, and merge what it has written every second."""
    began = time.monotonic()
    child = _start(name)
    status: int | None = None
    while status is None and time.monotonic() - began < limit:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        if status is None:
            time.sleep(0.2 if TINY else 1.0)
            merge()
    if status is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    ended: Any = "cut off" if status is None else os.waitstatus_to_exitcode(status)
    return {"seconds": round(time.monotonic() - began, 1), "ended": ended}


def _start(name: str) -> int:
    """Return the process that runs a stage, the leader of its group."""
    if torch.cuda.is_initialized():
        return subprocess.Popen([sys.executable, __file__, "--stage", name], start_new_session=True).pid
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        exit_after(lambda: STAGES[name][0](Record(name)))
    return child


def main(out: Path, names: list[str]) -> int:
    """Run stages one after the other, and return the exit code."""
    PARTS.mkdir(parents=True, exist_ok=True)
    for old in PARTS.glob("*.json"):
        old.unlink()
    torch.set_num_threads(1 if TINY else 8)
    deadline = time.monotonic() + float(os.environ.get("GPU_CHECK_SECONDS", "480"))
    told: dict[str, Any] = {}

    def merge() -> None:
        parts: dict[str, Any] = {}
        for path in sorted(PARTS.glob("*.json")):
            parts[path.stem] = json.loads(path.read_text())
        write_json(out, {"stages": told, **parts})

    for name in names or list(STAGES):
        left = deadline - time.monotonic()
        limit = left if TINY else min(STAGES[name][1], left)
        told[name] = {"seconds": 0.0, "ended": "not ended" if limit >= LEAST else "no time"}
        merge()
        if limit >= LEAST:
            told[name] = run_stage(name, limit, merge)
            merge()
    print(json.dumps(told), flush=True)
    result = json.loads(out.read_text())
    failed = [case for name in told for case in result.get(name, []) if "error" in case]
    return int(bool(failed) or any(stage["ended"] != 0 for stage in told.values()))


if __name__ == "__main__":
    if sys.argv[1] == "--report":
        print(report(json.loads(Path(sys.argv[2]).read_text())))
    elif sys.argv[1] == "--stage":
        exit_after(lambda: STAGES[sys.argv[2]][0](Record(sys.argv[2])))
    else:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
