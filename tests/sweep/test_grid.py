"""Grid files: cells, names, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.sweep.command import main
from lit_align.sweep.grid import Grid, check_cells, name_settings, read_grid

POLICY = {"model.policy": "testbed:policy", "model.optimizer.lr": 1e-3, "data.train": "testbed:train"}


def grid_of(folder: Path, *options: str, **content: Any) -> Grid:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({"base": POLICY, **content}, sort_keys=False), "utf-8")
    return read_grid(file, options)


def test_every_choice_is_crossed_with_every_seed(tmp_path: Path) -> None:
    linked = [
        {"model.objective": "dpo", "model.objective.beta": [0.1, 0.3]},
        {"model.objective": "ipo", "model.objective.tau": 0.5},
    ]
    grid = grid_of(tmp_path, grid={"objective": linked, "data.batch_size": [4, 8]}, seeds=[3, 5], run="runs/x")
    assert [cell.name for cell in grid.cells[:4]] == [
        "dpo-beta=0.1-batch_size=4-seed=3",
        "dpo-beta=0.1-batch_size=4-seed=5",
        "dpo-beta=0.1-batch_size=8-seed=3",
        "dpo-beta=0.1-batch_size=8-seed=5",
    ]
    assert len(grid.cells) == 3 * 2 * 2
    assert grid.cells[-1].values == {"model.objective": "ipo", "model.objective.tau": 0.5, "data.batch_size": 8}
    assert grid.cells[-1].folder == Path("runs/x/ipo-tau=0.5-batch_size=8-seed=5")
    words = grid.cells[-1].arguments
    assert words.index("--model.objective") < words.index("--model.objective.tau")  # a class before its options
    assert words[-4:] == ("--run", str(grid.cells[-1].folder), "--seed_everything", "5")


def test_names_of_classes_and_of_equal_ends() -> None:
    settings: list[dict[str, Any]] = [
        {
            "model.objective": {"class_path": "lit_align.objectives.dpo", "init_args": {"beta": beta}},
            "data.cache": name,
            "model.reference.cache": name,
        }
        for beta, name in ((0.1, "b a"), (0.2, "a/b"))
    ]
    assert name_settings(settings) == [
        "dpo_beta=0.1-data.cache=b_a-reference.cache=b_a",
        "dpo_beta=0.2-data.cache=b-reference.cache=b",
    ]
    same = name_settings([{"data.train": "x/b"}, {"data.train": "y/b"}])
    assert len(set(same)) == 2
    assert all(name.startswith("train=b-") for name in same)


def test_a_file_beside_the_grid_and_options_for_all_cells(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {train: x.jsonl}\n")
    grid = grid_of(tmp_path, "--trainer.max_steps", "5", base=["base.yaml", {"trainer": {"precision": "64"}}], seeds=1)
    assert grid.cells[0].arguments[:6] == (
        *("--config", str(tmp_path / "base.yaml"), "--config", '{"trainer": {"precision": "64"}}'),
        *("--trainer.max_steps", "5"),
    )
    assert [cell.name for cell in grid.cells] == ["run-seed=0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"gird": {}}, r"grid\.yaml: gird: no such key; did you mean grid\?"),
        ({"model.policy": "x"}, "model.policy: no such key; the keys of a run stand under base or grid"),
        ({"base": None}, "base is missing; expected a configuration file, or keys of a run"),
        ({"grid": {"data.batch_size": 4}}, r"grid\.data\.batch_size is 4; expected a list of values"),
        ({"grid": {"data.batch_size": []}}, r"grid\.data\.batch_size is \[\]; expected a list of values"),
        ({"grid": {"sizes": [4]}}, r"grid\.sizes holds 4; expected keys of a run with values that belong together"),
        ({"grid": {"seed_everything": [1]}}, "seed_everything cannot be varied; name the seeds by seeds"),
        ({"grid": {"run": ["a"]}}, "run cannot be varied"),
        (
            {"grid": {"data.batch_size": [4], "both": [{"data.batch_size": 8}]}},
            "data.batch_size is set by two axes",
        ),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]; expected a list of different whole numbers, or how many"),
        ({"seeds": 0}, "seeds is 0; expected"),
        ({"seeds": True}, "seeds is True; expected"),
        ({"metrics": "val/loss"}, "metrics is 'val/loss'; expected a list"),
        ({"share_reference": "often"}, "share_reference is 'often'; expected true or false"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_of(tmp_path, **content)


def test_options_that_the_sweep_or_the_grid_sets(tmp_path: Path) -> None:
    for option, message in (
        ("--seed_everything", "name the seeds by seeds"),
        ("--data.batch_size", "the grid sets it"),
    ):
        with pytest.raises(ValueError, match=message):
            grid_of(tmp_path, option, "1", grid={"data.batch_size": [4]})


def test_wrong_keys_of_any_cell_are_named_before_one_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = grid_of(
        tmp_path,
        grid={"objective": [{"model.objective": "dpo"}, {"model.objective": "ipo", "model.objective.bata": [1, 2]}]},
        run=str(tmp_path / "sweep"),
    )
    (mistake,) = check_cells(grid.cells)
    assert mistake.startswith("ipo-bata=1 and 1 more: model.objective.bata: ipo has no such option")
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "grid.yaml"), "--dry-run"])
    assert "error: ipo-bata=1 and 1 more: model.objective.bata" in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_mistake_in_all_cells_is_said_once(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, "--trainer.max_stepz", "5", grid={"model.objective": ["dpo", "ipo"]}, seeds=2)
    (mistake,) = check_cells(grid.cells)
    assert mistake.startswith("trainer.max_stepz: no such key; did you mean trainer.max_steps")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"prompts": "testbed:test", "judges": "testbed"}, "--judges: no such option; did you mean --judge?"),
        ({"judge": "testbed"}, "nothing to evaluate on: name --prompts, --pairs or --tasks"),
    ],
)
def test_wrong_options_of_the_evaluation_are_said_before_any_cell_runs(
    section: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid_of(tmp_path, evaluate=section, run=str(tmp_path / "sweep"), grid={"model.objective": ["dpo"]})
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "grid.yaml")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none.yaml")])
    assert "none.yaml: no such file; expected a grid" in capsys.readouterr().err


def test_a_base_may_be_a_configuration_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name or as the guides write it, in any folder; a file of one's own comes first."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "configs/quickstart.yaml"):
        words = grid_of(tmp_path, base=name).cells[0].arguments
        assert Path(words[1]).is_file()
        assert words[1].endswith("configs/quickstart.yaml")
    (tmp_path / "quickstart").write_text("task: reward\n")
    assert grid_of(tmp_path, base="quickstart").cells[0].arguments[1] == "quickstart"


@pytest.mark.slow
def test_the_grids_of_the_results_pages_have_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    files = [file for file in sorted((root / "tools" / "grids").glob("*.yaml")) if not file.stem.endswith("_run")]
    assert files
    for file in files:
        named = ("--model.policy", "testbed:policy") if file.stem.startswith("real") else ()  # as `tools/pages` does
        assert check_cells(read_grid(file, named).cells) == []
