"""The parser is strict where jsonargparse and LightningCLI are not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_align import objectives
from lit_align.cli import parsing
from lit_align.modules import Constant, Cosine, Schedule
from lit_align.objectives.base import Objective
from lit_align.online.objective import OnlineObjective
from tests.runner import forked

OURS = "lit_align.objectives."
SR_DPO = f"{{class_path: {OURS}sr_dpo, init_args: {{beta: 0.7}}}}"
SQUARE = "{class_path: Square, init_args: {beta: 2}}"
SQUARE_WITH_BETA = f"{{class_path: PreferenceObjective, init_args: {{contrast: {SQUARE}}}}}"


@pytest.fixture
def parser() -> parsing.Parser:
    parsing.prepare_parsing([])
    parser = parsing.Parser(prog="lit_align fit")
    parser.add_argument("--config", action="config")
    parser.add_argument("--objective", type=Objective)
    parser.add_argument("--trainer.max_steps", type=int, default=1)
    return parser


def objective(parser: parsing.Parser, *words: str) -> Any:
    return parser.instantiate(parser.parse_args(list(words))).objective


@pytest.mark.parametrize("name", ["simpo", f"{OURS}simpo", f"{{class_path: {OURS}simpo}}", "{class_path: simpo}"])
def test_a_preset_goes_by_its_name(parser: parsing.Parser, name: str) -> None:
    assert objective(parser, "--objective", name) == objectives.simpo()


def test_every_preset_and_part_has_a_short_name(parser: parsing.Parser) -> None:
    for name in objectives.__all__:
        thing = getattr(objectives, name)
        if callable(thing) and not isinstance(thing, type) and name != "papers_of":
            assert objective(parser, "--objective", name) == thing()
    assert objective(
        parser, "--objective", "PreferenceObjective", "--objective.contrast", "Hinge", "--objective.averaging", "Mean"
    ) == objectives.PreferenceObjective(objectives.Hinge(), averaging=objectives.Mean())


@pytest.mark.parametrize(
    "change",
    [
        ("--objective", "simpo"),
        ("--objective", f"{OURS}simpo"),
        ("--objective", "{class_path: simpo, init_args: {}}"),
        ("--objective.class_path", f"{OURS}simpo"),
        ("--config", "second"),
    ],
)
def test_settings_do_not_leak_into_the_next_objective(
    parser: parsing.Parser, change: tuple[str, str], tmp_path: Path
) -> None:
    """Without the patch, SimPO would take the β of the objective that it replaces (jsonargparse 4.53)."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"objective: {SR_DPO}\n")
    second.write_text(f"objective: {{class_path: {OURS}simpo}}\n")
    words = [str(second) if word == "second" else word for word in change]
    assert objective(parser, "--config", str(first), *words) == objectives.simpo()


def test_settings_do_not_leak_into_the_next_part(parser: parsing.Parser) -> None:
    found = objective(parser, "--objective", SQUARE_WITH_BETA, "--objective.contrast", "Logistic")
    assert found == objectives.PreferenceObjective(objectives.Logistic())


def test_settings_of_the_same_objective_stay(parser: parsing.Parser) -> None:
    found = objective(parser, "--objective", SR_DPO, "--objective.strength", "0.3")
    assert found == objectives.sr_dpo(beta=0.7, strength=0.3)


def refused(parser: parsing.Parser, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(list(words))
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) < 12, text
    return text


def test_a_misspelt_key_gets_a_suggestion(parser: parsing.Parser, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(parser, capsys, "--objective", "dpo", "--trainer.max_stepz", "3")
    assert "; did you mean trainer.max_steps?" in text


def test_no_abbreviations(parser: parsing.Parser, capsys: pytest.CaptureFixture[str]) -> None:
    assert "trainer.max_steps?" in refused(parser, capsys, "--objective", "dpo", "--trainer.max_step", "3")


def test_a_misspelt_objective_gets_a_suggestion(parser: parsing.Parser, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sr_dpo" in refused(parser, capsys, "--objective", "srdpo")


@pytest.mark.parametrize(
    ("task", "words", "said"),
    [
        ("preference", "--objective kl_rlhf", "objective is 'kl_rlhf', an objective of task online, and the task is"),
        ("preference", "--objective.help kl_rlhf", "objective is 'kl_rlhf', an objective of task online, and"),
        ("preference", "--objective klrlhf", "class that is known\n"),
        ("online", "--objective averageddpo", "; did you mean averaged_dpo"),
        ("online", "--objective klrlhf", "; did you mean kl_rlhf or pm_rlhf?\n"),
        ("online", "--objective RLHF --objective.surrogate Cliped", "; did you mean Clipped or ClampedKL?\n"),
    ],
)
def test_an_objective_of_another_task_names_the_task(
    capsys: pytest.CaptureFixture[str], task: str, words: str, said: str
) -> None:
    """Only names that are valid for the run's task are suggested."""
    parsing.prepare_parsing([])
    parser = parsing.Parser(prog="lit_align fit")
    parser.add_argument("--task", type=str, default=task)
    parser.add_argument("--objective", type=OnlineObjective | Objective if task == "online" else Objective)
    text = refused(parser, capsys, *words.split())
    assert said in text
    assert task == "online" or "did you mean" not in text


@pytest.mark.parametrize("name", ["sr_dpo", f"{OURS}sr_dpo"])
def test_a_preset_has_help(parser: parsing.Parser, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["--objective.help", name])
    assert "--objective.strength STRENGTH" in capsys.readouterr().out
    assert "path string: papers_of" in refused(parser, capsys, "--objective.help", "papers_of")


def test_a_misspelt_knob_is_named(parser: parsing.Parser, capsys: pytest.CaptureFixture[str]) -> None:
    assert "betta" in refused(parser, capsys, "--objective", "dpo", "--objective.betta", "3")


@pytest.mark.parametrize("words", [("--objective.betta", "3"), ("--config", "{objective: {init_args: {betta: 3}}}")])
def test_a_former_key_is_answered_with_its_new_name(
    parser: parsing.Parser,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setitem(parsing.RENAMED_KEYS, "objective.betta", "objective.beta")
    text = refused(parser, capsys, "--objective", "dpo", *words)
    assert "the key has a new name: objective.beta\n" in text
    assert "did you mean" not in text


def test_a_former_top_level_key_is_answered_with_its_new_name(
    parser: parsing.Parser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parsing.RENAMED_KEYS, "trainer.steps", "trainer.max_steps")
    for words in (("--trainer.steps", "3"), ("--config", "{trainer: {steps: 3}}")):
        assert "the key has a new name: trainer.max_steps\n" in refused(parser, capsys, "--objective", "dpo", *words)


def test_a_class_in_a_former_module_is_answered_with_how_to_name_it(
    parser: parsing.Parser, capsys: pytest.CaptureFixture[str]
) -> None:
    text = refused(parser, capsys, "--objective", "lit_align.objectives.weighted.WeightedSum")
    assert "name the class alone" in text


@pytest.fixture
def module_in_folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "evil_parts.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path / 'imported')!r}).touch()\n"
        "from lit_align.objectives import SFT, dpo\n"
        "class Mine(SFT.__mro__[1]):\n"
        "    def __call__(self, logps):\n"
        "        return dpo()(logps)\n"
    )
    yield tmp_path
    sys.modules.pop("evil_parts", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.security(5)
def test_a_configuration_imports_nothing_that_was_not_allowed(
    parser: parsing.Parser, module_in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(module_in_folder))
    refused(parser, capsys, "--objective", "evil_parts.Mine")
    refused(parser, capsys, "--objective", "os.system")
    assert not (module_in_folder / "imported").exists()


@pytest.mark.parametrize("named", [".", "evil_parts.py"])
def test_extensions_are_named_by_the_user(module_in_folder: Path, named: str) -> None:
    """A folder, or a single file in it."""

    def work() -> None:
        parsing.prepare_parsing([str(module_in_folder / named)])
        parser = parsing.Parser()
        parser.add_argument("--objective", type=Objective)
        parsed = parser.parse_args(["--objective", "evil_parts.Mine"])
        print(type(parser.instantiate(parsed).objective).__name__)

    ended = forked([work])[0]
    assert (ended.code, ended.out.strip()) == (0, "Mine")


@pytest.mark.parametrize("named", ["no_such_module_anywhere", "no_such_file.py", "./no_such_folder"])
def test_an_extension_that_is_not_there(named: str) -> None:
    with pytest.raises(ValueError, match=f"--extend {named}: neither a folder, nor a file, nor a module"):
        parsing.prepare_parsing([named])


def test_settings_of_a_default_part_do_not_leak(capsys: pytest.CaptureFixture[str]) -> None:
    """The default schedule warms up; the one that takes its place has its own default."""
    parsing.prepare_parsing([])
    parser = parsing.Parser(prog="lit_align fit")
    parser.add_argument("--schedule", type=Schedule, default=Cosine(warmup=0.3))
    assert parser.instantiate(parser.parse_args(["--schedule", "Constant"])).schedule == Constant(warmup=0.0)
    assert parser.instantiate(parser.parse_args(["--schedule.warmup", "0.2"])).schedule == Cosine(warmup=0.2)


@pytest.mark.fault("G06c", "G06d", "G08c")
def test_numbers_are_numbers_and_truth_values_are_no_text(
    parser: parsing.Parser, capsys: pytest.CaptureFixture[str]
) -> None:
    """``1e-4`` is a number of YAML 1.2; ``no`` is a truth value of YAML 1.1, and so no name."""
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--run", type=str, default="run")
    for words in (("--lr", "1e-4"), ("--lr=1e-4",), ("--config", "{lr: 1e-4}"), ("--config", "{lr: 1E-4}")):
        assert parser.parse_args(list(words)).lr == 1e-4
    assert "run" in refused(parser, capsys, "--config", "{run: no}")
    assert parser.parse_args(["--config", "{run: 'no'}"]).run == "no"
    assert parser.parse_args(["--run", "no"]).run == "no"
