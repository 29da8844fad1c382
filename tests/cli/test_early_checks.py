"""Checks before torch is imported agree with the parser and are fast."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lit_align import objectives, online
from lit_align.cli import run as cli
from lit_align.cli.annotations import constant
from lit_align.cli.configuration import read_configuration
from lit_align.cli.early_checks import SPLITS, check_command_line, stated_ranges
from lit_align.cli.help import help_text
from lit_align.cli.keys import MODULES, bases_of, choices_of, keys_of, options_of
from lit_align.cli.parsing import presets_of
from lit_align.compat.jsonargparse import options
from lit_align.data.datamodule import STAGES
from lit_align.data.sources.base import READERS, locate_source
from lit_align.data.sources.local import OPENERS
from lit_align.modules import LitModule
from lit_align.objectives.base import Objective
from lit_align.online.objective import OnlineObjective
from tests.runner import BASE, build_parser, forked, lit_align

DPO = ("--model.policy", "testbed:policy", "--model.objective", "dpo", "--data.train", "testbed:train")
ONLINE = (*DPO[:2], "--task", "online", "--model.objective", "kl_rlhf")
CONFIGS = Path(__file__).parents[2] / "configs"


# ── it agrees with the parser ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_keys_are_those_of_the_parser(command: str, task: str) -> None:
    keys, live = keys_of(command, task), options(build_parser(command, task))
    no_keys = {"help", "config", "print_config", "data.prompted", "data.mismatched"}
    assert set(keys.leaves) | keys.groups == {key for key in live if not key.endswith(".help")} - no_keys
    required = {key for key, option in live.items() if option.required}
    assert {key for key, parameter in keys.leaves.items() if parameter.default is None} == required


@pytest.mark.parametrize("task", MODULES)
def test_defaults_and_help_are_those_of_the_parser(task: str) -> None:
    keys, live = keys_of("fit", task), options(build_parser("fit", task))
    compared = 0
    for key, parameter in keys.leaves.items():
        try:
            default = constant(parameter)
        except ValueError:
            continue
        if parameter.default is not None and key not in ("task", "trainer.callbacks"):
            assert live[key].default == default, key
            compared += 1
        if key.startswith(("data.", "samples.", "checkpoints.", "export.")):
            assert parameter.help in " ".join(str(live[key].help).split()), key
    assert compared > 60


@pytest.mark.parametrize(
    ("task", "package", "live_base"), [("preference", objectives, Objective), ("online", online, OnlineObjective)]
)
def test_objectives_are_those_that_the_parser_takes(task: str, package: ModuleType, live_base: type) -> None:
    """Presets and concrete classes are those that the package exports."""
    bases = bases_of(keys_of("fit", task).leaves["model.objective"])
    assert [base.name for base in bases] == ["OnlineObjective", "Objective"][-1 if task == "preference" else 0 :]
    base = bases[0]
    exported = {name: getattr(package, name) for name in package.__all__}
    classes = {
        name
        for name, part in exported.items()
        if isinstance(part, type) and issubclass(part, live_base) and not getattr(part, "__abstractmethods__", ())
    }
    presets = {name for name, part in exported.items() if f"{package.__name__}.presets" in part.__module__}
    assert set(presets_of(live_base.__module__, live_base.__name__)) == presets
    assert set(choices_of(base)) == presets | classes


@pytest.mark.parametrize("name", sorted(presets_of(Objective.__module__, "Objective")))
def test_options_of_a_preset_are_its_arguments(name: str) -> None:
    (base,) = bases_of(keys_of("fit", "preference").leaves["model.objective"])
    make: Any = getattr(objectives, name)
    assert set(options_of(choices_of(base)[name]) or {}) == set(make.__annotations__) - {"return"}


def test_tasks_are_those_of_the_modules() -> None:
    assert {task: module.__name__ for task, module in cli.TASKS.items()} == {
        task: name for task, (_, name) in MODULES.items()
    }
    assert all(issubclass(module, LitModule) for module in cli.TASKS.values())


def test_ranges_are_found() -> None:
    assert ("data.batch_size", 1, float("inf")) in set(stated_ranges())


# ── nothing that is right is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_have_no_mistake(config: Path) -> None:
    mistakes = check_command_line(["fit", "--config", str(config)], reads_files=False)
    assert [mistake for mistake in mistakes if "are required" not in mistake] == []


RIGHT: tuple[tuple[object, ...], ...] = (
    (*DPO, "--model.optimizer", "SGD", "--model.optimizer.momentum", 0.9),
    (*DPO, "--model.optimizer", "torch.optim.RMSprop", "--model.optimizer.lr=1e-3"),
    (*DPO, "--model.lora", "LoRA", "--model.lora.rank", 8),
    (*DPO, "--model.lora", "{rank: 8}", "--model.schedule.warmup", 0.2, "--data.train+", "owner/name"),
    (*DPO[:2], "--model.objective", "{class_path: PreferenceObjective, init_args: {contrast: Square}}"),
    (*DPO[:2], "--model.objective", "PreferenceObjective", "--model.objective.contrast", "Hinge"),
    (*DPO, "--model.objective.init_args.beta", 1, "--model.objective.help", "dpo"),
    (*DPO, "--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "step"),
    (*DPO, "--trainer.logger", "false", "--trainer.devices", "auto", "--trainer.precision", "bf16-mixed"),
    (*DPO, "--trainer.val_check_interval", "00:00:10:00", "--trainer.limit_val_batches", 0.5),
    (*DPO, "--extend", "mine", "--model.objective", "mine.Focal", "--model.objective.anything", 1),
    (*DPO, "--extend", "mine", "--model.objective", "Focal", "--model.objective.gamma", 1),
    (*DPO, "--data.cache", "null", "--data.holdout", 0.1, "--data.columns", "{prompt: question}"),
    (*DPO[:2], "--model.objective", "lit_align.objectives.sr_dpo", "--model.objective.strength", 0.3),
    (*ONLINE, "--model.score", "KnownScore", "--model.score.score", "TestbedScore", "--model.value.path", "x"),
    (*ONLINE, "--model.score", "RewardModel", "--model.score.path", "x", "--model.score.loading.dtype", "bfloat16"),
    ("--task", "reward", "--model.policy", "testbed:policy", "--model.objective.centring", 0.1),
    ("--model", "model.yaml", "--data", "data.yaml"),
)


@pytest.mark.parametrize("words", RIGHT, ids=lambda words: " ".join(map(str, words[-2:])))
def test_what_is_right_passes(words: Sequence[object]) -> None:
    assert check_command_line(["fit", *map(str, words)]) == []


def test_a_complete_configuration_passes(tmp_path: Path) -> None:
    for task, words in {"preference": DPO, "online": (*ONLINE, "--model.score", "KnownScore")}.items():
        score = ("--model.score.score", "TestbedScore") if task == "online" else ()
        printed = lit_align("fit", *words, *score, "--print_config").out
        (tmp_path / "printed.yaml").write_text(printed)
        assert yaml.safe_load(printed)["task"] == task
        assert check_command_line(["fit", "--config", str(tmp_path / "printed.yaml")]) == []


# ── what is wrong, and what to write instead ────────────────────────────────────────────────────────────────────

WRONG: dict[tuple[object, ...], str] = {
    (*DPO, "--model.lr", 1e-3): "model.lr: no such key; did you mean model.optimizer.lr?",
    (*DPO, "--model.beta", 1): "model.beta: no such key; did you mean model.objective.beta?",
    (*DPO, "--model.averaging", "Mean"): "did you mean model.objective.averaging (of PreferenceObjective)?",
    (*DPO, "--model.objective", "sigmoid"): "model.objective is 'sigmoid'; it is called dpo here",
    (*DPO, "--model.objective", "srdpo"): "did you mean sr_dpo or ",
    (*DPO, "--model.objective", "kl_rlhf"): "an objective of task online, and the task is preference; add --task",
    (*DPO, "--model.objective.betta", 1): "model.objective.betta: dpo has no such option; did you mean beta?",
    (*DPO, "--model.objective.tau", 1): "model.objective.tau: dpo has no such option; it has beta",
    (*DPO, "--model.objective.beta", "many"): "model.objective.beta is 'many'; expected a number",
    (*DPO, "--model.objective.beta", -1): "Logistic.beta is -1.0; expected a finite number in (0, 1e6]",
    (*DPO, "--model.optimizer.learning_rate", 1): "AdamW has no such option; did you mean lr?",
    (*DPO, "--learning_rate", 1): "learning_rate: no such key; did you mean model.optimizer.lr?",
    (*DPO, "--data.batch_size", 0): "data.batch_size is 0; expected 1 or more",
    (*DPO[:2], "--model.objective", "no"): "model.objective is False (yes, no, on and off are truth values in YAML)",
    (*DPO[:2], "--model", "{objective: [dpo]}"): "model.objective is ['dpo']; expected the name of a class",
    (
        *DPO[:2],
        "--model",
        "{objective: no}",
    ): "model.objective is False (yes, no, on and off are truth values in YAML)",
    (*DPO, "--data.truncation", "chop"): "data.truncation is 'chop'; expected one of 'cut', 'cut_prompts', 'drop'",
    (*DPO, "--trainer.max_epochs", -1): "are both -1",
    (
        *DPO,
        "--model.objective",
        "mine.Focal",
    ): "importing 'mine.Focal' is not allowed; code of your own is named on the command line: --extend mine",
    (*ONLINE, "--model.score", "RewardFunction"): "expected JudgeScore or RewardModel or KnownScore or FunctionScore",
    (*ONLINE, "--model.score", "FunctionScore", "--model.score.function", "my.rate"): "--extend my",
    ("--task", "rewards"): "task is 'rewards'; expected one of preference, reward, online",
    DPO[:2]: "the following arguments are required: model.objective",
    (*DPO, "--data.train", "no.jsonl"): "data.train: data file not found: no.jsonl (expected a file, or a hub",
    (*DPO, "--data.train+", "no.csv.gz"): "data.train: data file not found: no.csv.gz",
    (*DPO, "--model.policy", "./nowhere"): "model.policy: model folder not found: ./nowhere",
    (*DPO, "--data.tokenizer", "testbed:train"): "data.tokenizer: ",
}


@pytest.mark.parametrize(("words", "message"), WRONG.items(), ids=lambda value: str(value)[-40:])
def test_what_is_wrong_is_told(words: Sequence[object], message: str) -> None:
    mistakes = check_command_line(["fit", *map(str, words)])
    assert len(mistakes) == 1
    assert message in mistakes[0]


def test_a_file_that_is_missing_is_told_as_a_run_would() -> None:
    for suffix in (f"{kind}{packed}" for kind in READERS for packed in ("", *OPENERS)):
        with pytest.raises(FileNotFoundError) as caught:
            locate_source(f"no{suffix}")
        command = ["fit", *DPO, "--data.validation", f"no{suffix}"]
        assert check_command_line(command) == [f"data.validation: {caught.value}"]
        assert check_command_line(["test", *command[1:]]) == []  # which does not read it
        assert check_command_line(command, reads_files=False) == []


def test_a_missing_file_is_told_with_the_configuration_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("data: {train: [testbed:train, no.jsonl]}")
    (mistake,) = check_command_line(["fit", *DPO[:-2], "--config", str(tmp_path / "mine.yaml")])
    assert mistake.startswith(f"{tmp_path / 'mine.yaml'}: data.train: data file not found: no.jsonl")


def test_splits_are_those_of_the_stages() -> None:
    assert dict(STAGES) == SPLITS


def test_every_mistake_is_told_with_the_name_of_its_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model: {policy: x, objective: dpo}\ndata: {batch_syze: 4}\ntrainer: {max_stepz: 3}\n")
    assert check_command_line(["fit", "--config", str(config), "--model.lr", "1"]) == [
        f"{config}: data.batch_syze: no such key; did you mean data.batch_size?",
        f"{config}: trainer.max_stepz: no such key; did you mean trainer.max_steps?",
        "model.lr: no such key; did you mean model.optimizer.lr?",
    ]


def test_a_number_out_of_range_names_the_file_that_it_stands_in(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model: {policy: x, objective: {class_path: dpo, init_args: {beta: 0}}}\n")
    assert check_command_line(["fit", "--config", str(config)])[0].startswith(f"{config}: Logistic.beta is 0.0")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is empty; expected keys"),
        (b"[1, 2]", " holds a list; expected keys"),
        (b"run: caf\xe9\n", ":1: not UTF-8"),
        (b"a: 1\nb: [1\nc: 2\n", ":3: not plain YAML: did not find expected ',' or ']'"),
        (b"a: 1\na: 2\n", ":2: not plain YAML: duplicate key 'a'"),
        (b"a: !!python/name:os.system\n", ":1: not plain YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=file.name) as error:
        read_configuration(str(file))
    assert str(error.value).startswith(f"{file}{message}")


def test_a_file_that_is_not_there_is_named() -> None:
    assert check_command_line(["fit", "--config", "nowhere.yaml"]) == [
        "--config nowhere.yaml: No such file or directory"
    ]


# ── at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.representative
@pytest.mark.parametrize(
    ("words", "code", "out"),
    [
        (("fit", "--help"), 0, "--model.objective CLASS, required"),
        (("fit", "--help", "trainer"), 0, "--trainer.max_steps int, default -1"),
        (("plan", "--help"), 0, "--hardware NAME"),
        (("predict", "--task", "online", "--help"), 0, "--model.score CLASS"),
        (("fit", *BASE, "--model.lr", "1"), 2, "did you mean model.optimizer.lr?"),
        (("plan", *DPO, "--data.batch_syze", "1"), 2, "did you mean data.batch_size?"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else None,
)
def test_torch_is_not_imported(words: tuple[str, ...], code: int, out: str) -> None:
    """Check that nothing slow is imported; the time itself depends on the machine."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lit_align", *words], capture_output=True, text=True, check=False
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert not imported & {"torch", "lightning", "transformers", "numpy", "peft"}
    assert ended.returncode == code
    assert out in ended.stdout + ended.stderr


def test_a_number_of_the_objective_needs_neither_lightning_nor_transformers() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lit_align", "fit", *DPO, "--model.objective.beta", "-1"],
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert not imported & {"lightning", "transformers", "peft"}
    assert "error: Logistic.beta is -1.0" in ended.stderr


def test_help_begins_with_our_keys_and_leaves_the_trainer_s_to_their_section() -> None:
    text = help_text("fit", "Train a policy.", "preference")
    assert text.index("--model.policy") < text.index("--data.train") < text.index("--samples.count")
    assert "--trainer.gradient_clip_val" not in text
    assert "--trainer.gradient_clip_val" in help_text("fit", "", "preference", "trainer")
    with pytest.raises(ValueError, match="did you mean trainer"):
        help_text("fit", "", "preference", "trianer")


def test_own_classes_have_help_through_the_parser(tmp_path: Path) -> None:
    (tmp_path / "my_losses.py").write_text("from lit_align.objectives import SFT\n\n\nclass Mine(SFT): ...\n")

    def work() -> None:
        from lit_align.cli import main

        main(["fit", "--extend", str(tmp_path), "--model.objective.help", "my_losses.Mine"])

    ended = forked([work])[0]
    assert ended.code == 0, ended.out
    assert "--model.objective.averaging" in ended.out
