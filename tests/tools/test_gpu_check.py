"""The check of a GPU runs through on a CPU with tiny shapes, and its report is a table of its cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "tools" / "gpu_check" / "stages.py"


@pytest.mark.long
@pytest.mark.slow
def test_the_check_of_a_gpu_runs_on_a_cpu(tmp_path: Path) -> None:
    out, names = tmp_path / "out.json", ["environment", "exact", "speed"]
    environment = {**os.environ, "GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, STAGES, out, *names], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads(out.read_text())
    exact = {case["case"]: case for case in result["exact"]}
    for layout in ("plain", "padded", "packed", "shared"):
        case = exact[f"fp32 sdpa {layout}"]
        assert max(case["log_probs"], case["one_pass"], case["gradient"]) < 1e-5
    assert exact["choice sdpa"] == {"case": "choice sdpa", "layout": "shared", "warnings": []}
    ours, padded = result["speed"][:2]
    assert ours["loss"] == pytest.approx(padded["loss"], abs=2e-2)
    told = subprocess.run([sys.executable, STAGES, "--report", out], env=environment, capture_output=True, text=True)
    assert "| fp32 sdpa shared | " in told.stdout
