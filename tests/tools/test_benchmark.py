"""The arithmetic of the benchmark, and a small run of it."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def parts() -> tuple[ModuleType, ModuleType, ModuleType]:
    sys.path.insert(0, str(ROOT / "tools"))
    from benchmarking import measure, report, work

    sys.path.remove(str(ROOT / "tools"))
    return measure, report, work


@pytest.mark.long
def test_one_command_measures_our_side(tmp_path: Path) -> None:
    tiny = ("--shape", "tiny", "--vocabulary", "300", "--steps", "3", "--batch", "2", "--repeats", "1")
    command = [sys.executable, str(ROOT / "tools" / "benchmark"), *tiny, "--cases", "dpo-cached", "--trl", "none"]
    (tmp_path / "speed.md").write_text("# Mine\n\nWords.\n\n<!-- measured -->\n- of before\n")
    subprocess.run([*command, "--out", str(tmp_path), "--folder", str(tmp_path)], check=True, capture_output=True)
    lines = (tmp_path / "speed.md").read_text("utf-8").splitlines()
    assert lines[:6] == ["# Mine", "", "Words.", "", "<!-- measured -->", ""]
    assert "- of before" not in lines
    assert sum(line.startswith("# ") for line in lines) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| dpo-cached")]
    speed, parts = ([float(cell) for cell in row[2:] if cell] for row in rows)
    pairs, tokens, user, wall, peak, startup, before = speed
    assert pairs == pytest.approx(2 * 2 / wall, rel=1e-2)
    counted = int(next(line for line in lines if " tokens of " in line).split("(")[1].split()[0])
    assert tokens == pytest.approx(counted / wall, rel=1e-2)
    assert 0 < user < 60
    assert 100 < peak < 4000
    assert startup > 0
    assert before > 0.01  # the reference was computed, and took a moment
    assert all(part >= 0 for part in parts)
    assert next(line for line in lines if line.startswith("To import torch"))
    assert (tmp_path / "speed.png").stat().st_size > 1000


class TestReport:
    def test_ratios_are_medians_of_neighbours(self, parts: tuple[ModuleType, ModuleType, ModuleType]) -> None:
        """TRL takes 4, 9, 8 s and this package 2, 3, 4 s: ratios 2, 3, 2, and a median of 12 pairs in 3 s."""
        measure, report, _ = parts

        def results(*seconds: float) -> list[object]:
            return [measure.Result(value, 1.0, 0.0, 0.0, 100.0) for value in seconds]

        lines = report.table({"dpo": {"ours": results(2, 3, 4), "TRL": results(4, 9, 8)}}, pairs=12, tokens=24)
        assert "| dpo | ours | 4 (3–6) | 8 (6–12) |" in lines[2]
        assert lines[3].endswith("| 1.00 | 2.00 | 1.00 |")

    def test_each_case_has_a_line_on_all_sides(self, parts: tuple[ModuleType, ModuleType, ModuleType]) -> None:
        measure, report, _ = parts
        ours, theirs = ([measure.Result(9.0, user, 4.0, 0.0, peak)] for user, peak in ((2.0, 700.0), (3.0, 900.0)))
        lines = report.summary({"smol": {"dpo": {"ours": ours, "TRL 4": theirs}, "sr_dpo": {"ours": ours}}})
        assert lines == [
            "- smol, dpo: TRL 4 takes 1.50 times our user CPU; our peak is 700 MiB, where the others have 900; "
            "our startup is 4 s, where the others have 4.",
            "- smol, sr_dpo: our peak is 700 MiB; our startup is 4 s.",
        ]

    def test_a_constant_and_a_slope_are_fitted(self, parts: tuple[ModuleType, ModuleType, ModuleType]) -> None:
        assert parts[1].line([1, 2, 4, 8], [8, 13, 23, 43]) == pytest.approx((3.0, 5.0))

    def test_other_losses_are_other_work(self, parts: tuple[ModuleType, ModuleType, ModuleType]) -> None:
        measure, report, _ = parts

        def side(*losses: float) -> list[object]:
            return [measure.Result(1, 1, 1, 1, 1, losses=losses)]

        ours, near, turned, far = side(0.7, 0.6), side(0.700001, 0.6), side(0.6, 0.7), side(0.7, 0.61)
        assert "near 1.0e-06" in report.compare_losses("dpo", {"ours": ours, "near": near}, 1e-5)
        for other in (turned, far):
            with pytest.raises(SystemExit, match="losses of other differ by"):
                report.compare_losses("dpo", {"ours": ours, "other": other}, 1e-5)
        with pytest.raises(SystemExit, match="other took 1 steps, ours 2"):
            report.compare_losses("dpo", {"ours": ours, "other": side(0.7)}, 1e-5)


class TestPairs:
    def test_a_dialogue_ends_with_the_assistants_turn(
        self, parts: tuple[ModuleType, ModuleType, ModuleType], tmp_path: Path
    ) -> None:
        before = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
        rows = [
            {"chosen": before + " yes", "rejected": before + " no"},
            {"chosen": before + " yes", "rejected": "\n\nHuman: other\n\nAssistant: no"},
            {"chosen": before + " yes", "rejected": before + " "},
        ]
        file = tmp_path / "rows.jsonl.gz"
        with gzip.open(file, "wt", encoding="utf-8") as opened:
            opened.writelines(json.dumps(row) + "\n" for row in rows)
        assert parts[2].read_pairs(file) == [{"prompt": before, "chosen": " yes", "rejected": " no"}]

    def test_without_a_file_they_are_the_testbeds(self, parts: tuple[ModuleType, ModuleType, ModuleType]) -> None:
        found = parts[2].read_pairs(None)
        assert len(found) == 2400
        assert found[0].keys() == {"prompt", "chosen", "rejected"}

    def test_both_sides_train_on_the_same_pairs(
        self, parts: tuple[ModuleType, ModuleType, ModuleType], tmp_path: Path
    ) -> None:
        rows = parts[2].words(prompt=5, response=4, count=6)
        models = parts[2].random_models(tmp_path, rows, "tiny", [300])
        work = parts[2].prepare(tmp_path / "work", rows, steps=3, batch=2, models=models, max_length=1024)
        ours, theirs = (sorted(path.read_text().splitlines()) for path in (work.pairs, work.ordered))
        assert ours == theirs
        assert len(work.tokens) == 3
        ordered, shuffled = (path.read_text().splitlines() for path in (work.ordered, work.shuffled))
        assert ordered[:2] == shuffled[:2]  # the batch that warms up is the same, so that the measured pairs are
        assert sorted(ordered) == sorted(shuffled)
        assert work.pairs.read_text() != work.ordered.read_text()
