"""Pages of evidence: closed forms, corrections for many comparisons, and what is kept of a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from lit_align.testbed.preferences import rated_score
from lit_align.testbed.world import SHIPPED, WorldSettings
from tools.evidence import averaging, beyond, chain, refinement, sweeps
from tools.evidence.closed_form import optimum
from tools.evidence.intervals import compare, holm, t_test
from tools.evidence.measure import draft_length, kept_pairs
from tools.evidence.sweeps import (
    FINISHED,
    NUMBERS,
    RunNumbers,
    keep_numbers,
    publish,
    read_numbers,
    restore,
    write_numbers,
)


def test_holm_corrects_in_the_order_of_the_p_values() -> None:
    """0.01 · 3, then 0.03 · 2, then 0.04 · 1, which must not fall below the one before."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


def test_t_test_of_paired_differences() -> None:
    """Mean 2, standard error 1 / √3: t = 3.4641 with 2 degrees of freedom."""
    assert t_test([1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)
    assert t_test([1.0]) == 1.0


def test_only_differences_that_hold_after_the_correction_are_bold() -> None:
    tested = compare({"clear": [1.0, 1.01, 0.99], "unclear": [1.0, -1.0, 0.3]})
    assert str(tested["clear"]).startswith("**1.00 ± ")
    assert "*" not in str(tested["unclear"])


def test_an_infinite_beta_leaves_the_reference() -> None:
    for power in (0.0, 0.5, 1.0):
        assert optimum(1e9, power, SHIPPED).kl == pytest.approx(0.0, abs=1e-6)


def test_raters_who_see_the_truth_leave_no_reason_for_filler() -> None:
    """Of all facts and nothing else: 6.5 facts of 3 1/12 words on average, each word at 0.05."""
    best = optimum(0.01, 0.0, WorldSettings(length_bonus=0.0))
    assert best.score == pytest.approx(6.5 * (1 - 0.05 * 37 / 12), abs=0.01)
    assert optimum(0.01, 0.0, SHIPPED).score < best.score - 0.5


def aligned(kind: str, beta: float, seed: int, score: float) -> averaging.Aligned:
    objective = {"contrast": "Logistic", "contrast.beta": beta, "averaging": kind}
    values = {f"model.objective.{name}": value for name, value in objective.items()}
    final = {"score": [score, score + 1], "length": [5, 5], "kl": beta, "won": [1, 0], "longer": [1, -1]}
    steps = {"0": {"length": 4.0, "score": 1.0}, "64": {"length": 5.0, "score": score}}
    return averaging.Aligned(RunNumbers(f"{kind}{beta}", seed, {**values, "data.train": "t"}, steps, final, ""))


GAINS = {1: 1.0, 2: 3.0}
"""β of sums → what means are ahead by."""
ALIGNED = [
    *(aligned("Sum", beta, seed, seed) for beta in GAINS for seed in (1, 2)),
    *(aligned("Mean", 30 * beta, seed, seed + gain) for beta, gain in GAINS.items() for seed in (1, 2)),
]


def test_all_betas_together_are_one_comparison() -> None:
    """Two seeds of two prompts and two β each; means are ahead by 1 and 3, which is 2 together."""
    assert averaging.equal_beta(ALIGNED).seeds["score", "DPO | mean | 2"] == [3.0, 3.0]
    joined = averaging.pooled(ALIGNED)
    assert joined.seeds == {("score", "DPO | mean | all 2"): [2.0, 2.0], ("length", "DPO | mean | all 2"): [0.0, 0.0]}
    by_seed, by_prompt = joined.tested()
    assert by_prompt["score", "DPO | mean | all 2"].difference.n == 2
    assert by_seed["score", "DPO | mean | all 2"].holm == 0


def test_every_row_of_a_table_has_a_cell_for_every_head() -> None:
    tables = [averaging.settings_table(ALIGNED), averaging.equal_kl_table(ALIGNED)]
    tables += [each(ALIGNED).table("β of sums") for each in (averaging.equal_beta, averaging.pooled)]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("power", averaging.POWERS.values())
def test_log_ratios_of_an_optimum_are_explained_by_their_own_form(power: float) -> None:
    rows = kept_pairs()
    ratios = np.array(
        [
            [
                draft_length(row[side]) ** power
                * (rated_score(row["prompt"], row[side]) / 3 + (0.2 if power else 0.0))
                for side in ("chosen", "rejected")
            ]
            for row in rows
        ]
    )
    shares = averaging.explained(ratios, SHIPPED.length_bonus)
    own = next(name for name, value in averaging.POWERS.items() if value == power)
    assert shares[own] == pytest.approx(1.0)
    assert all(share < 0.995 for name, share in shares.items() if name != own)


def test_numbers_of_a_finished_run_stay_when_its_code_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "seed=3" / "beta=1-seed=3"
    run.mkdir(parents=True)
    cell = {"finished": True, "identity": {"settings": {"model.objective": "dpo"}, "code": "abc"}}
    (run / "cell.json").write_text(json.dumps(cell))
    measured: list[Path] = []

    def measure(folder: Path) -> dict[str, Any]:
        measured.append(folder)
        return {"steps": {"1": {"score": 2.0}}, "final": {}}

    for _ in range(2):
        keep_numbers(tmp_path / "seed=3", measure)
    assert measured == [run]
    (kept,) = read_numbers(tmp_path)
    assert (kept.setting, kept.seed, kept.code, kept.steps) == ("beta=1", 3, "abc", {"1": {"score": 2.0}})
    assert read_numbers(tmp_path, range(1, 4)) == [kept]
    assert not read_numbers(tmp_path, range(1, 3))
    (run / NUMBERS).unlink()
    (run / "cell.json").write_text(json.dumps(cell | {"finished": False}))
    keep_numbers(tmp_path / "seed=3", measure)
    assert not read_numbers(tmp_path)


def test_only_seeds_that_have_not_finished_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep that fails leaves its seed to the next start; each seed has a grid and a folder of its own."""
    grids: list[dict[str, Any]] = []
    codes = {2: 1}

    def run(command: list[str], **_: object) -> SimpleNamespace:
        grids.append(yaml.safe_load(Path(command[4]).read_text()))
        return SimpleNamespace(returncode=codes.pop(grids[-1]["seeds"][0], 0))

    monkeypatch.setattr(sweeps.subprocess, "run", run)
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: a.yaml\ngrid: {x.y: [1]}\nseeds: 4\n")
    with pytest.raises(SystemExit, match="the sweep of seed 2 ended with code 1"):
        sweeps.sweep_seeds(grid, tmp_path / "runs", [1, 2, 3], dict)
    sweeps.sweep_seeds(grid, tmp_path / "runs", [1, 2, 3], dict)
    assert [each["seeds"] for each in grids] == [[1], [2], [2], [3]]
    assert grids[-1]["run"] == str(tmp_path / "runs" / "seed=3")
    assert grids[-1]["grid"] == {"x.y": [1]}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A page's runs: one of a sweep of a sweep, and one that starts from it."""
    runs = tmp_path / "runs"
    for seed in (1, 2):
        for step, values in {"first": {"x": 1}, "second": {"policy": f"{runs}/first/seed={seed}/policy"}}.items():
            folder = runs / step / f"seed={seed}" / f"a-seed={seed}"
            folder.mkdir(parents=True)
            write_numbers(folder, RunNumbers("a", seed, values, {}, {"score": [1 / 3, 2e-9 / 3], "n": 12345678}, "c"))
            (folder.parent / FINISHED).write_text("")
    return runs


def test_published_numbers_stand_for_runs_elsewhere(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers in the same folders, paths among them, and nothing left to sweep; not of unfinished seeds."""
    file, elsewhere = tmp_path / "numbers" / "page.jsonl.xz", tmp_path / "elsewhere"
    (kept / "second" / "seed=2" / FINISHED).unlink()  # interrupted
    publish(kept, range(1, 9), file)
    restore(file, elsewhere)
    (run,) = read_numbers(elsewhere / "second")  # of seed 1
    assert run.values == {"policy": f"{elsewhere}/first/seed=1/policy"}
    assert run.final == {"score": [0.333333, 6.66667e-10], "n": 12345678}
    assert read_numbers(elsewhere / "first") == read_numbers(kept / "first")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: pytest.fail("swept again"))
    grid = tmp_path / "grid.yaml"
    grid.write_text("base: a.yaml\n")
    sweeps.sweep_seeds(grid, elsewhere / "second", [1], dict)
    before = file.read_bytes()
    for runs in (elsewhere, tmp_path / "nothing"):
        publish(runs, range(1, 9), file)
        assert file.read_bytes() == before


def test_numbers_that_are_there_are_not_replaced(kept: Path, tmp_path: Path) -> None:
    file = tmp_path / "numbers.xz"
    publish(kept, {1, 2}, file)
    run = kept / "first" / "seed=1" / "a-seed=1"
    write_numbers(run, RunNumbers("a", 1, {"x": 1}, {}, {"score": [5.0]}, "newer"))
    restore(file, kept)
    assert read_numbers(kept / "first", {1})[0].code == "newer"


PAGES: dict[str, tuple[str, Callable[[Path], dict[str, str]]]] = {
    "averaging": ("averaging", lambda runs: averaging.tables([averaging.Aligned(run) for run in read_numbers(runs)])),
    "beyond": ("beyond", lambda runs: beyond.tables(read_numbers(runs))),
    "matching": ("preference_matching", lambda runs: chain.tables(chain.by_policy(runs, range(100)))),
    "refinement": ("refinement", lambda runs: refinement.tables(read_numbers(runs))),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_have_the_tables_of_their_published_numbers(page: str, tmp_path: Path) -> None:
    name, tables = PAGES[page]
    text = (sweeps.ROOT / "docs" / "results" / f"{name}.md").read_text("utf-8")
    restore(sweeps.ROOT / "docs" / "results" / "numbers" / f"{page}.jsonl.xz", tmp_path)
    for mark, table in tables(tmp_path).items():
        assert f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->" in text
