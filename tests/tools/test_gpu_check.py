"""The check of a GPU runs through on a CPU with tiny shapes, and its report is a table of its cases."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lit_align import __version__, testbed
from tests.runner import forked

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "tools" / "gpu_check" / "stages.py"


def check(folder: Path, *names: str, **more: str) -> dict[str, Any]:
    """Run stages in a forked child, which need not import the libraries again, and return what they have written."""
    out = folder / "out.json"

    def work() -> None:
        os.environ |= {"GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(folder)} | more
        sys.path.insert(0, str(STAGES.parent))
        for module in STAGES.parent.glob("*.py"):  # another test may have imported it for another device
            sys.modules.pop(module.stem, None)
        sys.exit(import_module("stages").main(out, [*names]))

    (ended,) = forked([work])
    assert ended.code == 0, ended.out
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What all stages use, as on a machine with a GPU that no stage has opened yet."""
    monkeypatch.syspath_prepend(str(STAGES.parent))
    module = import_module("common")
    monkeypatch.setattr(module, "PARTS", tmp_path)
    monkeypatch.setattr(module, "DEVICE", "cuda")
    return module


def test_cases_leave_a_closed_device_closed(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a stage are forked, and a forked child cannot use a device that its parent has opened."""

    def opens(*ignored: Any) -> None:
        raise AssertionError("this opens the device")

    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", opens)
    record = common.Record("again")
    record.attempt("first", lambda: {"equal": True})
    record.attempt("second", lambda: {}["nothing"])
    cases = json.loads((common.PARTS / "again.json").read_text())
    assert [case["case"] for case in cases] == ["first", "second"]
    assert cases[1]["error"] == "KeyError: 'nothing'"


def test_a_stage_that_was_cut_off_is_reported_with_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STAGES.parent))
    stages = {"exact": {"seconds": 3.0, "ended": 0}, "speed": {"seconds": 0.0, "ended": "not ended"}}
    cases = {"exact": [{"case": "fp32", "gradient": 1e-7}], "speed": [{"case": "1b ours", "loss": 0.69}]}
    report = import_module("report").report({"stages": stages, **cases})
    assert "## exact\n\n3 s\n\n| case | gradient |" in report
    assert "## speed\n\n0 s; the check ended before this stage did" in report
    assert "| 1b ours | 0.69 |" in report


@pytest.mark.long
def test_stages_and_commands_are_processes_where_the_device_is_open(tmp_path: Path) -> None:
    """A forked child could not use it; the check is slower then, and says the same."""

    def work() -> None:
        os.environ |= {"GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        sys.path.insert(0, str(STAGES.parent))
        stages, common = import_module("stages"), import_module("common")
        torch.cuda.is_initialized = lambda: True
        torch.cuda.empty_cache = torch.cuda.reset_peak_memory_stats = lambda: None
        assert stages.main(tmp_path / "out.json", ["environment"]) == 0
        assert common.command("--version") == f"{__version__}\n"

    (ended,) = forked([work])
    assert ended.code == 0, ended.out
    assert json.loads((tmp_path / "out.json").read_text())["environment"][0]["case"] == "versions"


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
def test_a_model_is_trained_as_users_do(tmp_path: Path) -> None:
    """A policy in a folder, on texts of HH-RLHF; TRL beside it where it is installed."""
    talk = "\n\nHuman: How many are {} and {}?\n\nAssistant: {}"
    rows = [{"chosen": talk.format(n, n, 2 * n), "rejected": talk.format(n, n, "many")} for n in range(80)]
    rows[7]["chosen"] = talk.format(7, 7, " ")  # as some are
    data = tmp_path / "pairs.jsonl.gz"
    data.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    places = {"GPU_CHECK_MODEL": str(testbed.resolve("testbed:policy")), "GPU_CHECK_DATA": str(data)}
    ours, refined, trl = check(tmp_path, "smol", LIT_ALIGN_CACHE=str(tmp_path / "cache"), **places)["smol"]
    assert ours["last"]["train/loss"] == pytest.approx(0.6931, abs=0.1)
    assert refined["last"]["train/throughput/tokens_per_second"] > 0
    assert "skipped" in trl or trl["loss"] == pytest.approx(0.6931, abs=0.1)


def test_a_model_that_nothing_prepares_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STAGES.parent))
    monkeypatch.chdir(tmp_path)
    appears = import_module("whole_runs")._appears
    assert not appears(Path("config.json"), within=60.0)
    Path("config.json").write_text("{}")
    assert appears(Path("config.json"))


@pytest.mark.long
def test_the_script_reports_what_it_has_written(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    environment = {**os.environ, "GPU_CHECK_DEVICE": "cpu", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for words in ([out, "exact"], ["--report", out]):
        run = subprocess.run([sys.executable, STAGES, *words], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    assert "| fp32 sdpa shared | " in run.stdout
