"""The commands of the README run, and the files that it names exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lit_align import __version__
from lit_align.locate import HUB_NAME
from tests.runner import lit_align

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
START = (ROOT / "docs" / "index.md").read_text("utf-8")
LIMITS = {
    "fit": (
        *("--trainer.max_steps", 2, "--trainer.limit_val_batches", 1, "--trainer.log_every_n_steps", 1),
        *("--samples.count", 2, "--samples.sampling.max_new_tokens", 8),
    ),
    "validate": ("--trainer.limit_val_batches", 1),
    "test": ("--trainer.limit_test_batches", 1),
    "predict": ("--trainer.limit_predict_batches", 1),
}


def offline(words: list[str]) -> list[str]:
    """Replace a model on a hub by a local one."""
    pairs = zip(["", *words], words, strict=False)
    return ["testbed:policy" if key == "--model.policy" and HUB_NAME.fullmatch(word) else word for key, word in pairs]


def shell_commands(markdown: str) -> list[str]:
    """Return the commands in fenced bash blocks: continued lines joined, chains split, comments dropped."""
    blocks = re.findall(r"^```bash\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [part.strip() for line in lines for part in line.split("&&") if part.strip() and not line.startswith("#")]


def our_commands(markdown: str) -> list[list[str]]:
    """Return the words after ``python -m lit_align`` in each command."""
    start = "python -m lit_align "
    return [
        shlex.split(command.removeprefix(start), comments=True)
        for command in shell_commands(markdown)
        if command.startswith(start)
    ]


def test_the_parser_of_this_file() -> None:
    text = "```bash\n# note\na -c 'x y' && python -m lit_align fit \\\n  --run 'a b'  # why\n```\n```yaml\na: 1\n```\n"
    assert our_commands(text) == [["fit", "--run", "a b"]]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the repository's root, where commands may write and later commands find the results."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [{"prompt": f"What is {n}?", "chosen": " Good.", "rejected": " Bad, bad."} for n in range(40)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for name in ("configs", "README.md"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize("words", our_commands(README), ids=" ".join)
@pytest.mark.representative
def test_the_command_runs(copy: Path, words: list[str]) -> None:
    limits = () if "--help" in words else LIMITS.get(words[0], ())
    quiet = ("--trainer.enable_progress_bar", "false") if limits else ()
    ended = lit_align(*offline(words), *limits, *quiet, folder=copy)
    assert ended.code == 0, ended.out


def fenced(language: str, holding: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return next(block for block in blocks if holding in block)


def test_the_example_of_a_new_part_runs(copy: Path) -> None:
    (copy / "parts").mkdir()
    (copy / "parts" / "my_contrasts.py").write_text(fenced("python", "class Focal"), "utf-8")
    (copy / "mine.yaml").write_text(fenced("yaml", "my_contrasts.Focal"), "utf-8")
    words = ("--config", "configs/quickstart.yaml", "--config", "mine.yaml", "--extend", "parts", "--run", "runs/mine")
    ended = lit_align("fit", *words, *LIMITS["fit"], folder=copy)
    assert ended.code == 0, ended.out
    assert "contrast=Focal(beta=2.0, kappa=2.0)" in ended.out
    assert "refinement=SelfRefine(strength=0.3)" in ended.out


def test_the_first_command_is_the_quickstart() -> None:
    assert our_commands(README)[0] == ["fit", "--config", "configs/quickstart.yaml"]


def test_the_commands_name_files_that_exist() -> None:
    """The two that set up an environment: to train, and to test."""
    named = {
        word.rstrip(";")
        for command in shell_commands(README)
        for word in shlex.split(command, comments=True)
        if re.fullmatch(r"(configs|tools|docs|tests)/\S+|\S+\.(txt|toml|yaml)", word)
    }
    assert {"constraints.txt", "configs/quickstart.yaml", "tools/check"} <= named
    assert [word for word in sorted(named) if not (ROOT / word).exists()] == []


def test_the_first_page_of_the_site_has_the_same_commands() -> None:
    assert set(shell_commands(START)) <= set(shell_commands(README))
    assert our_commands(START)[:2] == our_commands(README)[:2]


def test_the_tree_of_the_package_names_what_exists() -> None:
    """The tree in the page on the code names existing files and folders, and every package."""
    tree = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("```\n")[1]
    stack: list[str] = []
    named = set()
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], name]
        named.add("".join(stack).rstrip("/"))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "lit_align").rglob("__init__.py")}
    assert packages - named <= {"lit_align/objectives/presets"}


def test_links_lead_somewhere() -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in target]
    assert [target for target in targets if target and not (ROOT / target).exists()] == []


@pytest.mark.long
def test_the_entry_in_python_trains(tmp_path: Path) -> None:
    """As the page shows it, but for a limit of steps; in a process of its own, as in a script."""
    (text,) = re.findall(r"^```python\n(.*?)^```", START, re.MULTILINE | re.DOTALL)
    assert len([line for line in text.splitlines() if line]) <= 12
    limits = "limit_train_batches=2, limit_val_batches=1, logger=False, enable_checkpointing=False"
    (tmp_path / "script.py").write_text(text.replace("max_epochs=1", f"max_epochs=1, {limits}"), "utf-8")
    words = [sys.executable, "script.py"]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"^tensor\(0\.\d+\)$", ended.stdout, re.MULTILINE), ended.stdout
    assert (tmp_path / "my_policy" / "model.safetensors").is_file()


def test_the_citation_has_the_version() -> None:
    (entry,) = re.findall(r"^```bibtex\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert f"version = {{{__version__}}}" in entry
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text("utf-8")
