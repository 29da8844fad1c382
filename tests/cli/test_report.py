"""The report command: what it prints and writes, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import lit_align.cli.report  # noqa: F401 (imported once, here, and not in every child)
from lit_align.cli import main
from tests.runner import Ended, forked, lit_align

ROOT = Path(__file__).parents[2]
QUICKSTART = ("--config", ROOT / "configs" / "quickstart.yaml")


def report(*words: object) -> Ended:
    """``python -m lit_align report *words`` in a forked child."""

    def work() -> None:
        main(["report", *map(str, words)])

    return forked([work])[0]


def row(number: int, chosen: int = 4, rejected: int = 2) -> dict[str, Any]:
    return {"prompt": f"Q {number}:", "chosen": " yes" * chosen + f" {number}", "rejected": " no" * rejected}


def write(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", "utf-8")
    return path


@pytest.fixture
def own(tmp_path: Path) -> tuple[object, ...]:
    """Settings without a configuration file."""
    return ("--data.tokenizer", "testbed:policy", "--out", tmp_path / "out")


def numbers(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "data.json").read_text("utf-8"))
    return found


def read_fine(ended: Ended, code: int = 0) -> str:
    assert ended.code == code, ended.out
    assert "Traceback" not in ended.out
    return ended.out


# ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_runs_configuration(tmp_path: Path) -> None:
    """A complete configuration is accepted, and the sections about data are used."""
    text = read_fine(report(*QUICKSTART, "--out", tmp_path / "out"))
    assert "longer wins (95 %)" in text
    assert max(len(line) for line in text.splitlines() if line.startswith(("│", "┃"))) <= 80
    files = {path.name for path in (tmp_path / "out").iterdir()}
    splits = ("train", "validation")
    assert files == {
        "data.json",
        "longer_wins.png",
        *(f"{kind}_{s}.png" for kind in ("lengths", "gap") for s in splits),
    }
    assert all(str(tmp_path / "out" / name) in text for name in files)
    assert numbers(tmp_path)["train"]["lengths"]["pairs"] == 2400


def test_the_same_numbers_as_in_the_runs_folder(tmp_path: Path) -> None:
    """The report of a saved configuration equals the run's ``data.json``, and the log has the length gap."""
    data = write(tmp_path / "rows.jsonl", [row(n, 1 + n % 5) for n in range(9)])
    words = ("--run", tmp_path / "run", "--data.train", data, "--model.policy", "testbed:policy")
    quiet = ("--trainer.max_steps", 1, "--samples.count", 0, "--export.form", "none", "--trainer.accelerator", "cpu")
    fit = lit_align("fit", *words, *quiet, "--model.objective", "sr_dpo")
    assert fit.code == 0, fit.out
    read_fine(report("--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "out"))
    told = json.loads((tmp_path / "run" / "data.json").read_text("utf-8"))
    assert numbers(tmp_path) == {"train": told["train"]}
    (events,) = (tmp_path / "run").glob("events*")
    assert all(f"train data/{name}".encode() in events.read_bytes() for name in ("chosen", "rejected", "gap"))


@pytest.mark.representative
def test_data_alone_with_scores(tmp_path: Path, own: Sequence[object]) -> None:
    rows = [{**row(n, 1 + n), "score_chosen": n, "score_rejected": 0} for n in range(9)]
    text = read_fine(report(*own, "--data.train", write(tmp_path / "rows.jsonl", rows)))
    assert "length gap ~ score gap, r" in text
    assert (tmp_path / "out" / "scores_train.png").stat().st_size > 5000
    assert numbers(tmp_path)["train"]["lengths"]["score_correlation"] == pytest.approx(1, abs=0.01)


def test_later_words_win_over_the_configuration(tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", [row(n) for n in range(3)])
    read_fine(report(*QUICKSTART, "--data.train", data, "--data.validation", "null", "--out", tmp_path / "out"))
    assert list(numbers(tmp_path)) == ["train"]
    assert numbers(tmp_path)["train"]["lengths"]["pairs"] == 3


@pytest.mark.long
def test_room_for_the_quality_prompt_as_in_the_run(tmp_path: Path) -> None:
    """Self-refinement leaves less room for the response, so more of them are cut."""
    found = {}
    for objective in ("dpo", "sr_dpo"):
        words = ("--model.objective", objective, "--data.max_length", 160, "--data.quality_prompt", "word " * 40)
        words += ("--data.on_bad_row", "drop")  # a row whose responses begin alike is cut to nothing else
        read_fine(report(*QUICKSTART, *words, "--out", tmp_path / "out", "--max_truncated", 1))
        found[objective] = numbers(tmp_path)["train"]["lengths"]["prompt"]["mean"]
        found[objective] += numbers(tmp_path)["train"]["lengths"]["chosen"]["mean"]
    assert found["sr_dpo"] < found["dpo"]


# ── 1: beyond a limit ───────────────────────────────────────────────────────────────────────────────────────────────

SWAPPED = {**row(1), "chosen": row(1)["rejected"], "rejected": row(1)["chosen"]}
LIMITS: dict[str, tuple[Sequence[object], tuple[object, ...], str]] = {
    "max_dropped": (
        [row(1), row(2), "{"],
        ("--data.on_bad_row", "drop", "--data.max_dropped", 1),
        "failed: data.train: 1 of 3 rows were left out: 33.33%, and max_dropped is 10.00%",
    ),
    "max_truncated": (
        [row(1, 30, 30), row(2, 30, 1)],
        ("--data.max_length", 20),
        "failed: data.train: 3 of 4 responses were cut: 75.00%, and max_truncated is 50.00%",
    ),
    "max_contradictory": (
        [row(1), SWAPPED, row(2)],
        (),
        "failed: data.train: 2 of 3 pairs are also there with the sides swapped: 66.67%, "
        "and max_contradictory is 10.00%",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_that_is_not_kept(name: str, tmp_path: Path, own: Sequence[object]) -> None:
    rows, words, line = LIMITS[name]
    command = (*own, "--data.train", write(tmp_path / "rows.jsonl", rows), *words)
    assert line in read_fine(report(*command), code=1).splitlines()
    assert (tmp_path / "out" / "data.json").is_file(), "what is wrong can be looked at"
    assert "failed" not in read_fine(report(*command, f"--{name}", 1))


def test_evaluation_on_trained_prompts(tmp_path: Path, own: Sequence[object]) -> None:
    train = write(tmp_path / "train.jsonl", [row(n) for n in range(9)])
    test = write(tmp_path / "test.jsonl", [row(1, 7), row(20)])
    words = (*own, "--data.train", train, "--data.test", test)
    line = "failed: data.test: 1 of 2 pairs have a prompt that is trained on: 50.00%, and max_overlap is 10.00%"
    assert line in read_fine(report(*words), code=1)
    read_fine(report(*words, "--max_overlap", 0.5))


def test_every_failed_check_has_its_line(tmp_path: Path, own: Sequence[object]) -> None:
    data = write(tmp_path / "rows.jsonl", [row(1), SWAPPED, "{"])
    words = ("--data.train", data, "--data.on_bad_row", "drop", "--data.max_dropped", 1)
    text = read_fine(report(*own, *words), code=1)
    assert sum(line.startswith("failed: ") for line in text.splitlines()) == 2


# ── 2: cannot be read ───────────────────────────────────────────────────────────────────────────────────────────────

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "no data": ((), "no data is set"),
    "no tokenizer": (("--data.train", "testbed:train", "--data.tokenizer", "null"), "data.tokenizer is not set"),
    "no such file": (("--data.train", "nowhere/rows.jsonl"), "nowhere/rows.jsonl"),
    "not a number": (("--data.train", "testbed:train", "--data.max_length", "many"), "data.max_length"),
    "out of range": (("--data.train", "testbed:train", "--data.max_length", 1), "data.max_length is 1; expected 4"),
    "a share above 1": (("--data.train", "testbed:train", "--max_dropped", 2), "max_dropped is 2.0; expected 0 to 1"),
    "on-policy": (("--model.objective", "kl_rlhf"), "is 'kl_rlhf', an objective of task online; leave the key out"),
    "misspelt": (("--data.trian", "testbed:train"), "; did you mean data.train"),
    "no such configuration": (("--config", "nowhere.yaml"), "nowhere.yaml"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, own: Sequence[object]) -> None:
    words, message = REFUSED[name]
    text = read_fine(report(*own, *words), code=2)
    assert message in text
    assert len(text.splitlines()) < 8, text


@pytest.mark.representative
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, own: Sequence[object]) -> None:
    data = write(tmp_path / "rows.jsonl", [row(1), "{", {"prompt": "Q", "chosen": None, "rejected": "x"}])
    text = read_fine(report(*own, "--data.train", data), code=2)
    assert "rows.jsonl:2: not valid JSON" in text
    assert "rows.jsonl:3: chosen: " in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {train: testbed:train, trian: x}", "trian"),
        ("data: {train: a, train: b}", "duplicate key"),
        ("data: !!python/object/apply:os.system ['touch here']", "config"),
        ("data: [", "config"),
    ],
    ids=["misspelt", "twice", "code", "not YAML"],
)
def test_a_configuration_that_is_refused(text: str, message: str, tmp_path: Path, own: Sequence[object]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, "utf-8")
    assert message in read_fine(report(*own, "--config", path), code=2)
    assert not Path("here").exists()


def test_code_of_ones_own_needs_the_users_word(tmp_path: Path, own: Sequence[object]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("{data: {train: testbed:train}, model: {objective: os.system}}", "utf-8")
    assert "objective" in read_fine(report(*own, "--config", config), code=2)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("**/*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_is_understood(path: Path) -> None:
    """Sections of a configuration that are not about data are ignored."""
    assert "data:" in read_fine(report("--config", path, "--print_config"))


def test_help_explains_the_keys() -> None:
    text = read_fine(report("--help"))
    assert all(key in text for key in ("--data.train", "--out", "--max_overlap", "--model.policy"))
