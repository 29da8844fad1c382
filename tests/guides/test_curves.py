"""The guide names exactly the metrics that exist, and its figures are drawn by the tool."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lit_align import objectives
from lit_align.callbacks.training_figures import PANELS, draw_curves
from lit_align.comparison.runs import read_run
from lit_align.metrics import pair_values
from lit_align.metrics.pairs import CORRELATION
from lit_align.objectives.examples import worked_pair
from lit_align.sweep.grid import read_grid
from tests.runner import QUIET
from tests.runner import lit_align as command

from .reading import GUIDES, ROOT, blocks, guide, rows

GUIDE = guide("curves")
NAMES = {*pair_values.PAIR_METRICS, CORRELATION}
OF_STEPS = {"grad_norm", "learning_rate", "tokens_seen", "throughput/tokens_per_second", "beta/effective"}
OF_MIXTURES = ["router_loss"]
BEFORE_TRAINING = {f"quality_prompt/{name}" for name in ("accuracy", "label_correlation", "length_correlation")}
METRICS = [name for row in rows(GUIDE, "metric") for name in re.findall(r"`([\w/]+)`", row[0])]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    loader = SourceFileLoader("curves", str(ROOT / "tools" / "curves"))
    module = module_from_spec(spec_from_loader("curves", loader))
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of a real run, and its validation."""
    folder = tmp_path_factory.mktemp("curves")
    words = ("--config", ROOT / "configs" / "quickstart.yaml", "--run", folder / "run", "--trainer.max_steps", 2)
    few = ("--trainer.val_check_interval", 2, "--trainer.limit_val_batches", 2, "--trainer.log_every_n_steps", 1)
    shorter = ("--samples.count", 2, "--samples.sampling.max_new_tokens", 4, "--export.form", "none")
    ended = command("fit", *words, *few, *shorter, *QUIET)
    assert ended.code == 0, ended.out
    return folder / "run"


def reported(run: Path) -> set[str]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {name for line in lines for name in json.loads(line)}


def test_every_metric_of_pairs_is_explained() -> None:
    assert sorted(NAMES - set(METRICS)) == []


def test_every_metric_that_a_run_reports_is_explained(run: Path) -> None:
    names = {name.split("/", 1)[1] for name in reported(run) if name.startswith(("train/", "val/"))}
    assert len(names) > 30
    assert sorted(names - set(METRICS)) == []


def written_out(pattern: str) -> list[str]:
    """The names that a pattern with braces and placeholders stands for."""
    inserted = {"<term>": "", "<bucket>": f"{{{','.join(pair_values.BUCKETS)}}}"}
    inserted["<quarter>"] = ",".join(f"{name}_quarter" for name in pair_values.QUARTERS)
    for placeholder, names in inserted.items():
        pattern = pattern.replace(placeholder, names)
    choices = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def test_the_table_of_metrics_is_complete() -> None:
    table = rows((ROOT / "docs" / "metrics.md").read_text("utf-8"), "metric")
    named = {name for row in table for cell in re.findall(r"`([^`]+)`", row[0]) for name in written_out(cell)}
    known = NAMES | OF_STEPS | BEFORE_TRAINING
    assert sorted(known - named) == []
    assert sorted(name for name in named - known if not name.startswith("samples/")) == ["loss/", *OF_MIXTURES]


def test_no_metric_is_invented(run: Path) -> None:
    samples = {name for name in reported(run) if name.startswith("samples/")}
    known = NAMES | OF_STEPS | samples
    assert sorted(name for name in METRICS if name not in known) == []


def first_losses() -> list[tuple[str, float]]:
    """Return the objectives in the table of first losses, and the first number of each row."""
    losses = []
    for names, value in rows(GUIDE, "objective"):
        number = re.match(r"[\d.]+", value)
        losses += [(name, float(number[0])) for name in re.findall(r"`(\w+)`", names) if number]
    return losses


@pytest.mark.parametrize(("name", "expected"), first_losses())
def test_the_first_loss(name: str, expected: float) -> None:
    """Equal models."""
    start = replace(worked_pair(), reference=worked_pair().policy)
    start = replace(start, mismatched=start, prompted=start, pair_seed=torch.tensor([1]))
    assert float(getattr(objectives, name)()(start).loss) == pytest.approx(expected, abs=5e-4)


def test_the_first_losses_are_many() -> None:
    assert len(first_losses()) >= 18


def test_the_figures_are_there_and_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", GUIDE)
    files = [GUIDES / name for name in shown]
    assert len(files) >= 5
    assert all(file.read_bytes()[:4] == b"\x89PNG" and file.stat().st_size < 150_000 for file in files)
    assert {file.name for file in (GUIDES / "figures").iterdir()} == {file.name for file in files}


def test_the_commands_make_the_figures(tool: ModuleType) -> None:
    words = " ".join(block.text for block in blocks(GUIDE) if block.language == "console").split()
    (file,) = [ROOT / word for word in words if word.endswith(".yaml")]
    drawn = {f"{tool.label(cell.folder)}.png" for cell in read_grid(file).cells}
    assert {Path(name).name for name in re.findall(r"\(figures/([^)]+)\)", GUIDE)} == drawn


def test_the_table_of_numbers_has_the_tool_s_columns(tool: ModuleType) -> None:
    heading = next(line for line in GUIDE.splitlines() if line.startswith("| run |"))
    assert re.findall(r"`([^`]+)`", heading) == list(tool.TABLE)
    assert len(rows(GUIDE, "run")) == len(list((GUIDES / "figures").iterdir()))


def test_the_tool_draws_a_run(tool: ModuleType, run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["curves", str(run), "--out", str(tmp_path)])
    tool.main()
    assert (tmp_path / "run.png").read_bytes()[:4] == b"\x89PNG"
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| `run`"))
    loss = [
        json.loads(text)["val/loss"] for text in (run / "metrics.jsonl").read_text().splitlines() if "val/loss" in text
    ]
    assert line.split("|")[2].strip() == f"{loss[-1]:.3g}"


def test_every_curve_is_one_that_a_run_has(tool: ModuleType, run: Path) -> None:
    drawn = {name for _, lines in PANELS for name in lines} | set(tool.TABLE)
    assert drawn <= NAMES
    assert {f"val/{name}" for name in drawn} - reported(run) <= {
        f"val/{name}"
        for name in drawn
        if "much" in name  # two batches may have no pair of that kind
    }


def test_what_is_drawn_is_what_was_reported(tmp_path: Path) -> None:
    """A step that was reported twice counts as it was reported last; a metric that is missing leaves no line."""
    lines = [
        {"step": 1, "train/loss": 3.0, "val/loss": 2.5},
        {"step": 2, "train/loss": 2.0},
        {"step": 2, "train/loss": 1.0, "val/loss": 1.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    read = read_run(tmp_path)
    loss, rewards, *_ = draw_curves("x", read.curves).axes
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines if len(line.get_xdata())]
    assert drawn == [([1, 2], [3.0, 1.0]), ([1, 2], [2.5, 1.5])]
    assert not any(len(line.get_xdata()) for line in rewards.lines)
    assert (read.last("val/loss"), read.last("val/rewards/chosen")) == (1.5, None)


def test_a_folder_without_a_run_is_refused(tool: ModuleType, monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["curves", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        tool.main()
    assert ended.value.code == 2
    assert "holds no run" in capsys.readouterr().err
