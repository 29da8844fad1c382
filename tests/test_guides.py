"""The commands of the data guide run, its tables match the code, and links between pages work."""

from __future__ import annotations

import inspect
import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lit_align.cli.report
from lit_align import objectives
from lit_align.cli import main
from lit_align.data import PreferenceData
from lit_align.data.batches.loader import DEFAULT_BATCH_SIZE
from lit_align.data.formats.registry import FORMATS
from lit_align.data.report.lengths import length_report
from lit_align.data.report.table import table
from lit_align.data.text.render import QUALITY_PROMPT
from tests.data.report.test_lengths import STORE
from tests.guides.reading import rows
from tests.runner import forked
from tests.test_readme import our_commands

ROOT = Path(__file__).parents[1]
DATA = (ROOT / "docs" / "guides" / "data.md").read_text("utf-8")
HERE = {"Anthropic/hh-rlhf": "dialogues.jsonl", "EleutherAI/pythia-410m": "testbed:policy"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder like the repository's root, with stand-ins for data sets of the hub."""
    dialogue = "\n\nHuman: What is {}?\n\nAssistant:"
    rows = [{"chosen": f"{dialogue.format(n)} Good.", "rejected": f"{dialogue.format(n)} Bad."} for n in range(16)]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return tmp_path


@pytest.mark.parametrize("words", our_commands(DATA), ids=" ".join)
def test_the_command_runs(copy: Path, words: list[str]) -> None:
    def work() -> None:
        os.chdir(copy)
        main([HERE.get(word, word) for word in words])

    (ended,) = forked([work])
    assert ended.code == 0, ended.out
    assert (copy / "runs" / "report" / "longer_wins.png").is_file()


def test_every_format_is_explained() -> None:
    assert all(f"| `{name}` |" in DATA for name in FORMATS)


def test_the_objectives_for_unpaired_rows_are_named() -> None:
    presets = [name for name in objectives.__all__ if name.islower() and name != "papers_of"]
    accepting = {name for name in presets if getattr(objectives, name)().needs.unpaired}
    documented = DATA.split("each response on its own accept them:")[1].split(". Objectives")[0]
    assert set(re.findall(r"`(\w+)`", documented)) == accepting


def test_every_limit_is_explained_with_its_default() -> None:
    for each in fields(lit_align.cli.report.Limits):
        assert any(f"--{each.name}" in line and str(each.default) in line for line in DATA.splitlines()), each.name


def test_the_other_keys_have_the_defaults_that_are_said() -> None:
    table = rows(DATA.split("## Other keys")[1], "key")
    documented = {re.search(r"`data\.(\w+)`", key)[1]: default for key, default, _ in table}
    defaults = {name: each.default for name, each in inspect.signature(PreferenceData).parameters.items()}
    defaults["batch_size"] = DEFAULT_BATCH_SIZE
    defaults["quality_prompt"] = "see below"
    assert documented == {name: "none" if defaults[name] is None else str(defaults[name]) for name in documented}
    quoted = re.search(r'\(2405.21040\): "([^…]+) …"', DATA)[1]
    assert QUALITY_PROMPT.startswith(" ".join(quoted.split()))


def test_every_row_of_the_table_is_explained() -> None:
    labels = [str(label).strip() for label in table({"train": length_report(STORE)}).columns[0].cells]
    explained = DATA.split("## Reading the table")[1].split("## Figures")[0]
    assert all(label in explained or label.endswith("%") for label in labels), labels


@pytest.mark.parametrize("guide", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_links_of_every_page_lead_somewhere(guide: Path) -> None:
    """Links lead to files that exist and to headings in them, whose anchors are their words joined."""
    for target in re.findall(r"\]\(([^)\s]+)\)", guide.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = guide.parent / name if name else guide
        assert file.is_file(), target
        headings = (
            [line.lstrip("# ") for line in file.read_text("utf-8").splitlines() if line.startswith("#")]
            if anchor
            else []
        )
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in headings], (
            target
        )
