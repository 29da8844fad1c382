"""Tests of the guide from TRL: keys, objectives and defaults exist, and no option of TRL is missing."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from lit_align import models, modules, objectives, online
from lit_align.cli.keys import keys_of
from lit_align.metrics import pair_values
from tests.runner import QUIET
from tests.runner import lit_align as command

from .reading import blocks, guide

GUIDE = guide("from_trl")
HEADINGS = ("TRL", "LLaMA-Factory", "OpenRLHF", "open-instruct", "HALOs", "SimPO")
PREFIXES = ("model.", "data.", "trainer.", "samples.", "checkpoints.", "export.", "hub.")
SINGLE = ("run", "task", "seed_everything", "ckpt_path", "on_changed_settings")
OF_METRICS = (*pair_values.PAIR_METRICS, "tokens_seen")
TASKS = ("preference", "reward", "online")


def table_rows(markdown: str) -> list[list[str]]:
    """Return the cells of all rows of all tables, without heading rows and rulers."""
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] not in HEADINGS]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def counterparts() -> list[str]:
    """Return the code in the second column: keys, parts, presets and metrics of this package."""
    return sorted({word for row in table_rows(GUIDE) for word in code(row[1])})


def keys_in_words() -> list[str]:
    """Return the keys named in notes and in the text."""
    words = {word for line in GUIDE.splitlines() for word in code(line)}
    return sorted(word for word in words if word.startswith(PREFIXES))


def trl() -> ModuleType:
    return pytest.importorskip("trl", reason="TRL is of the extra `peers`")


@cache
def known_keys(task: str) -> frozenset[str]:
    keys = keys_of("fit", task)
    return frozenset(keys.leaves) | keys.groups


def public(*modules: object) -> dict[str, object]:
    return {name: thing for module in modules for name, thing in vars(module).items() if not name.startswith("_")}


NAMES = public(objectives, models, modules, online)


def parameters(start: object) -> set[str]:
    """Return the arguments of a class or preset, and of the subclasses of a class."""
    things = [start] if callable(start) else []
    for thing in things:
        if inspect.isclass(thing):
            things += thing.__subclasses__()
    return {name for thing in things for name in inspect.signature(thing).parameters}


def inside(key: str) -> set[str]:
    """Return the arguments that a key with classes as values may have below it."""
    kinds = {
        "model.objective": [thing for name, thing in vars(objectives).items() if name in objectives.__all__],
        "model.reference": [models.Reference],
        "model.lora": [models.LoRA],
        "model.optimizer": [torch.optim.AdamW],
        "model.schedule": [modules.Schedule],
    }
    of_online = [thing for thing in public(online).values() if callable(thing)]
    kinds["model.objective"] += of_online
    return {name for thing in kinds.get(key, []) if callable(thing) for name in parameters(thing)}


def is_key(word: str) -> bool:
    key = word.partition(": ")[0]
    if any(key in known_keys(task) for task in TASKS):
        return True
    start, *below = re.match(r"(model\.\w+)((?:\.\w+)*)$", key).groups() if key.startswith("model.") else (key,)
    names = "".join(below).split(".")[1:]
    return bool(names) and all(name in inside(start) for name in names)


def is_ours(word: str) -> bool:
    return word in NAMES or word in OF_METRICS


@pytest.mark.parametrize("word", counterparts())
def test_the_counterpart_exists(word: str) -> None:
    if word.startswith(PREFIXES) or word.partition(": ")[0] in SINGLE:
        assert is_key(word)
    else:
        assert is_ours(word)


@pytest.mark.parametrize("key", keys_in_words())
def test_the_key_exists(key: str) -> None:
    assert is_key(key)


@pytest.mark.parametrize(
    "key", ["model.objectiv", "model.reference.evry", "data.batchsize", "model.lora.rang", "runs"]
)
def test_a_key_that_does_not_exist_is_noticed(key: str) -> None:
    assert not is_key(key)


@pytest.mark.parametrize("section", ["Losses", "The other trainers of TRL", "LLaMA-Factory", "open-instruct"])
def test_a_preset_has_the_knob_that_its_row_names(section: str) -> None:
    """A key ``model.objective.x`` in a row with a preset is an argument of that preset."""
    part = GUIDE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    checked = 0
    for row in table_rows(part):
        presets = [NAMES[word] for word in code(row[1]) if inspect.isfunction(NAMES.get(word))]
        knobs = [word.rsplit(".", 1)[1] for word in code(" ".join(row)) if re.match(r"model\.objective\.\w+$", word)]
        for knob in knobs if presets else ():
            assert any(knob in inspect.signature(preset).parameters for preset in presets), row
            checked += 1
    assert checked or section == "Losses"


def test_defaults_of_beta_are_as_the_table_says() -> None:
    """Rows of the losses say which default β differs from TRL's 0.1."""
    part = GUIDE.split("\n## Losses\n")[1].split("The other options of the loss")[0]
    for _, ours, note in table_rows(part):
        for word in code(ours):
            default = inspect.signature(NAMES[word]).parameters.get("beta")
            if default is not None:
                match = re.search(r"default β: ([\d.]+)", note)
                assert default.default == (float(match[1].rstrip(".")) if match else 0.1), word


@pytest.mark.long
def test_the_example_trains(tmp_path: Path) -> None:
    """Train with the configuration beside TRL's script; the hub is replaced by what ships with the package."""
    (text,) = [block.text for block in blocks(GUIDE) if block.language == "yaml"]
    config = yaml.safe_load(text)
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    local = {"--model.policy": "testbed:policy", "--data.train": "testbed:validation", "--data.validation": "null"}
    here = [word for pair in local.items() for word in pair]
    short = ("--trainer.max_steps", 1, "--data.max_length", 128, "--samples.count", 0, "--export.form", "none", *QUIET)
    ended = command("fit", "--config", "mine.yaml", *here, *short, folder=tmp_path)
    assert ended.code == 0, ended.out
    saved = yaml.safe_load((tmp_path / config["run"] / "config.yaml").read_text())
    assert saved["model"]["objective"]["init_args"] == config["model"]["objective"]["init_args"]
    assert saved["trainer"]["accumulate_grad_batches"] == 4


def test_what_the_guide_says_of_defaults() -> None:
    defaults = inspect.signature(modules.LitPreference).parameters
    assert repr(defaults["schedule"].default) == "Cosine(warmup=0.1, floor=0.0)"
    (optimizer,) = [defaults["optimizer"].default([torch.nn.Parameter(torch.zeros(1))])]
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (1e-6, 0.0)


def test_what_the_guide_says_of_defaults_on_policy() -> None:
    """Compare the defaults in the notes with those of the keys."""
    defaults = {name: each.default for name, each in inspect.signature(modules.LitOnline).parameters.items()}
    defaults |= {
        "sampling.max_new_tokens": defaults["sampling"].max_new_tokens,
        "objective.surrogate.clip": online.Clipped().clip,
    }
    part = GUIDE.split("### On-policy runs")[1].split("\n## ")[0]
    matches = {
        code(ours)[0].removeprefix("model."): re.search(r"default ([\d.]+)", note)
        for _, ours, note in table_rows(part)
        if code(ours)
    }
    numbers = {key: float(match[1].rstrip(".")) for key, match in matches.items() if match}
    assert len(numbers) >= 7
    assert numbers == {key: defaults[key] for key in numbers}


@pytest.mark.peers
def test_every_option_of_trl_is_in_the_guide() -> None:
    """Of ``DPOConfig`` and everything that it inherits."""
    documented = {word for row in table_rows(GUIDE) for word in code(row[0])}
    assert [field.name for field in fields(trl().DPOConfig) if field.name not in documented] == []


@pytest.mark.peers
def test_no_option_of_trl_is_invented() -> None:
    part = GUIDE.split("\n## DPOConfig")[1].split("\n## Metrics\n")[0]
    known = {field.name for field in fields(trl().DPOConfig)}
    assert [word for row in table_rows(part) for word in code(row[0]) if word not in known] == []


@pytest.mark.peers
def test_every_loss_of_trl_is_in_the_guide() -> None:
    source = inspect.getsource(trl().DPOTrainer)
    losses = re.findall(r'loss_type == "(\w+)"', source)
    documented = {word for row in table_rows(GUIDE.split("\n## Losses\n")[1]) for word in code(row[0])}
    assert len(losses) >= 15
    assert [loss for loss in losses if loss not in documented] == []
