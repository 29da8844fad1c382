"""The check of a GPU runs through on a CPU with tiny shapes, and its report is a table of its cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.runner import forked

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "tools" / "gpu_check" / "stages.py"


def check(folder: Path, *names: str) -> dict[str, Any]:
    """Run stages in a forked child, which need not import the libraries again, and return what they have written."""
    out = folder / "out.json"

    def work() -> None:
        os.environ |= {"GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(folder), "GPU_CHECK_MODEL": str(folder / "nowhere")}
        sys.path.insert(0, str(STAGES.parent))
        sys.exit(import_module("stages").main(out, [*names]))

    (ended,) = forked([work])
    assert ended.code == 0, ended.out
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_single_computations_run_on_a_cpu(tmp_path: Path) -> None:
    """Each way of reading agrees with the loop in float64; each form of attention that a CPU has, with the others."""
    result = check(tmp_path, "environment", "exact", "attention")
    exact = {case["case"]: case for case in result["exact"]}
    for layout in ("plain", "padded", "packed", "shared"):
        case = exact[f"fp32 sdpa {layout}"]
        assert max(case["log_probs"], case["one_pass"], case["gradient"]) < 1e-5
    assert exact["bf16-mixed sdpa shared"]["path"] == "segments"
    assert exact["choice sdpa"] == {"case": "choice sdpa", "layout": "shared", "warnings": []}
    assert all(case.get("apart", 0) < 2e-2 for case in result["attention"])


@pytest.mark.long
def test_steps_run_on_a_cpu(tmp_path: Path) -> None:
    """Ours, the padded loop and TRL, where it is installed, compute the same loss."""
    ours, *others = check(tmp_path, "speed")["speed"]
    for other in others:
        assert "skipped" in other or other["loss"] == pytest.approx(ours["loss"], abs=2e-2)


@pytest.mark.long
@pytest.mark.parametrize("stage", ["again", "rollout", "compiled"])
def test_the_other_stages_run_on_a_cpu(stage: str, tmp_path: Path) -> None:
    result = check(tmp_path, stage)
    assert result["stages"][stage]["ended"] == 0
    if stage == "again":
        assert all(case["equal"] for case in result[stage])


@pytest.mark.long
def test_the_script_reports_what_it_has_written(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    environment = {**os.environ, "GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for words in ([out, "exact"], ["--report", out]):
        run = subprocess.run([sys.executable, STAGES, *words], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "| fp32 sdpa shared | " in run.stdout
