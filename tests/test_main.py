"""The entry point answers without importing the libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lit_align import __version__

pytestmark = pytest.mark.representative


def door(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lit_align", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("--version",), ("fti",)])
def test_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    """Without these imports it is fast; the time itself depends on the machine."""
    imported = {line.rsplit("|", 1)[-1].strip() for line in door(*words).stderr.splitlines() if "|" in line}
    assert "lit_align" in imported
    assert not imported & {"torch", "lightning", "transformers", "jsonargparse", "yaml", "numpy"}


@pytest.mark.parametrize("own", [{}, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}])
def test_memory_of_a_device_grows_in_segments_unless_the_user_says_otherwise(own: dict[str, str]) -> None:
    """PyTorch reads it when it is imported, which no command has done yet."""
    words = "import os; from lit_align.cli import main; main(['--version']); print(os.getenv('PYTORCH_ALLOC_CONF'))"
    mine = {name: text for name, text in os.environ.items() if not name.startswith("PYTORCH_")} | own
    printed = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=mine).stdout
    assert printed.split()[-1] == ("None" if own else "expandable_segments:True")


def test_help_lists_the_commands() -> None:
    text = door("--help").stdout
    assert all(command in text for command in ("fit", "validate", "test", "predict"))


def test_version() -> None:
    assert door("--version").stdout.strip() == __version__


def test_an_unknown_command_gets_a_suggestion() -> None:
    ended = door("fti")
    assert ended.returncode == 1
    assert "unknown command 'fti'; did you mean fit?" in ended.stderr
