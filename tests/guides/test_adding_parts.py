"""The parts of the guide satisfy the laws, and train."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_align.data.formats.registry import FORMATS, read_row
from lit_align.data.sources.base import read_source
from lit_align.models import Loading, load_causal_lm
from lit_align.objectives import dpo
from lit_align.objectives.examples import worked_pair
from tests.laws.cases import random_pairs
from tests.runner import QUIET, forked, lit_align
from tests.test_readme import our_commands

from .reading import ROOT, blocks, files, guide

GUIDE = guide("adding_parts")
FILES = files(GUIDE)
CONFIGS = {block.section: block.text for block in blocks(GUIDE) if block.language == "yaml"}
ROWS = [
    {"prompt": f"What is {n} + 1?", "chosen": f" It is {n + 1}.", "rejected": " I do not know" + "." * (1 + n % 3)}
    for n in range(16)
]
SHORT = (
    *("--data.train", "pairs.jsonl", "--data.validation", "null", "--data.batch_size", 4, "--export.form", "none"),
    *("--trainer.max_steps", 2, "--trainer.log_every_n_steps", 1, "--trainer.val_check_interval", 1.0, *QUIET),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the parts of the guide, the configurations of the repository, a few pairs."""
    place = tmp_path_factory.mktemp("user")
    (place / "parts").mkdir()
    for name, text in FILES.items():
        (place / "parts" / name).write_text(text, "utf-8")
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, ROWS)), "utf-8")
    (place / "configs").symlink_to(ROOT / "configs")
    return place


@pytest.fixture
def parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's files as modules."""
    monkeypatch.syspath_prepend(str(folder / "parts"))
    yield folder / "parts"
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def leaves(config: object) -> dict[str, object]:
    """Return the settings of every custom part in a configuration: class path → arguments."""
    parts: dict[str, object] = {}
    if isinstance(config, dict):
        if str(config.get("class_path", "")).startswith("my_"):
            parts[config["class_path"]] = config.get("init_args", {})
        for value in config.values():
            parts |= leaves(value)
    return parts


def named(config: str) -> dict[str, object]:
    """Do the same for a configuration as the guide writes it: a part without arguments is its bare name."""
    bare = dict.fromkeys(re.findall(r": (my_\w+\.\w+)$", config, re.MULTILINE), {})
    return leaves(yaml.safe_load(config)) | bare


SECTIONS = [
    section if section in ("A contrast", "A score") else pytest.param(section, marks=pytest.mark.long)
    for section in CONFIGS
]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_part_trains(folder: Path, section: str) -> None:
    """Train two steps by the configuration of the guide; the saved one lists the part with its arguments."""
    (folder / f"{section}.yaml").write_text(CONFIGS[section], "utf-8")
    samples = ("--samples.sampling.max_new_tokens", 8) if section == "A score" else ("--samples.count", 0)
    run = folder / "runs" / section
    words = ("--config", "configs/quickstart.yaml", "--config", f"{section}.yaml", "--extend", "parts", "--run", run)
    ended = lit_align("fit", *words, *SHORT, *samples, folder=folder)
    assert ended.code == 0, ended.out
    saved, expected = leaves(yaml.safe_load((run / "config.yaml").read_text())), named(CONFIGS[section])
    assert expected
    for path, arguments in expected.items():
        assert arguments.items() <= saved[path].items(), path
    reported = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in reported if "train/loss" in line]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    if section == "A score":
        assert any("samples/policy/score" in line for line in reported)


def test_the_first_command_is_the_one_that_is_tested() -> None:
    (words,) = our_commands(GUIDE)
    assert words[:7] == [
        "fit",
        "--config",
        "configs/quickstart.yaml",
        "--config",
        "contrast.yaml",
        "--extend",
        "parts",
    ]
    assert "`contrast.yaml`:\n\n```yaml" in GUIDE


def test_the_laws_run_as_the_guide_says(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the guide's command in a process that has imported everything; count laws and doctests."""
    command = next(block.text for block in blocks(GUIDE) if block.language == "console")
    _, variable, *words = command.split()
    assert (variable, words) == ("PYTHONPATH=parts", ["python", "-m", "pytest", "--doctest-modules", "parts"])
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # meant for the run around this one
    (ended,) = forked([lambda: sys.exit(pytest.main(["-c", os.devnull, "-q", words[3], str(parts)]))])
    assert ended.code == 0, ended.out
    passed = int(re.search(r"(\d+) passed", ended.out)[1])
    examples = sum(">>> " in text for text in FILES.values())
    laws = importlib.import_module("test_my_parts").CASES
    assert examples >= 6
    assert passed == examples + len(laws)


def test_the_laws_can_fail_on_a_user_s_part(parts: Path) -> None:
    """A part that is wrong is caught by the very list that the guide makes."""
    module, focal = importlib.import_module("test_my_parts"), importlib.import_module("my_contrasts").Focal

    class Careless(focal):
        def __call__(self, margin):
            return super().__call__(margin - margin.mean())

    broken = [law.__name__ for law, part in module.CASES if isinstance(part, focal) and fails(law, Careless())]
    assert "pairs_are_independent" in broken
    assert module.BROKEN.keys() == {
        (law.__name__, type(part)) for law, part in module.CASES if fails(law, part)
    }  # nothing is excused that need not be


def fails(law, part) -> bool:
    try:
        law(part)
    except AssertionError:
        return True
    return False


def test_the_hardest_pairs_are_the_ones_with_the_largest_losses(parts: Path) -> None:
    module = importlib.import_module("my_objectives")
    logps, plain = random_pairs(pairs=8), dpo()(random_pairs(pairs=8)).loss
    loss = module.Hardest(dpo(), share=0.25)(logps).loss
    hardest = plain.topk(2).indices.sort().values
    assert loss.nonzero().flatten().tolist() == hardest.tolist()
    torch.testing.assert_close(loss.mean(), plain.topk(2).values.mean())


def test_the_penalty_beside_the_loss(parts: Path) -> None:
    logps = random_pairs(pairs=4)
    ratio = (logps.policy - logps.reference).double()
    own = importlib.import_module("my_penalties").PenalizedDPO(beta=0.3, weight=0.5)(logps)
    assert (own.loss - dpo(0.3)(logps).loss).double() == pytest.approx(0.25 * ratio[:, 0].square().sum(-1), rel=1e-4)


def test_the_reference_lies_between_two_models(parts: Path, tmp_path: Path) -> None:
    between = importlib.import_module("my_references").Between
    policy = load_causal_lm("testbed:policy", Loading())
    moved = load_causal_lm("testbed:policy", Loading())
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(1.0)
    moved.save_pretrained(tmp_path)
    reference = between(str(tmp_path), share=0.25)
    reference.attach(policy)
    with reference.active() as model:
        apart = [weight - start for weight, start in zip(model.parameters(), policy.parameters(), strict=True)]
    assert all(torch.allclose(part, torch.full_like(part, 0.25), atol=1e-5) for part in apart)
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_offset_follows_the_reference(parts: Path) -> None:
    """Sums over 10 and 40 tokens: the reference has 25 and 58 nats less than certainty."""
    part = importlib.import_module("my_refinements").ReferenceMargin(strength=0.1)
    pair = worked_pair()
    sums = (pair.reference * pair.mask).sum(-1)[0]
    offset = part(pair, dpo().log_ratio)
    torch.testing.assert_close(offset, 0.1 * (sums[0] - sums[1])[None])
    objective = replace(dpo(), refinement=part)
    torch.testing.assert_close(objective(pair).offset, offset)


def test_converted_rows_are_pairs(parts: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "votes.jsonl", tmp_path / "pairs.jsonl"
    votes = [{"a": 3, "b": 1}, {"a": 2, "b": 2}]
    source.write_text("\n".join(json.dumps({"question": "Q?", "a": "yes", "b": "no", "votes": v}) for v in votes))
    importlib.import_module("convert").convert(source, target)
    (pair,) = (pair for row in read_source(str(target)) for pair in read_row(row, FORMATS["pairs"]).pairs)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.weight) == ("Q?", "yes", "no", 2.0)


def test_every_interface_of_the_table_has_its_section() -> None:
    table = GUIDE.split("| you want to change |")[1].split("\n\n")[0]
    anchors = re.findall(r"\(#([\w-]+)\)", table)
    headings = [
        re.sub(r"[^\w ]", "", line[3:]).lower().replace(" ", "-") for line in GUIDE.splitlines() if line[:3] == "## "
    ]
    assert len(anchors) == 14
    assert set(anchors) <= set(headings)


def test_the_examples_in_docstrings_are_found() -> None:
    with_examples = [name for name, text in FILES.items() if doctest.DocTestParser().get_examples(text)]
    assert {"my_contrasts.py", "my_averagings.py", "my_schedules.py"} <= set(with_examples)
