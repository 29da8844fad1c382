"""The wheel is complete: it runs outside of the repository, with the configurations and the testbed that it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: object, folder: Path, **environment: str) -> str:
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.long
def test_the_quickstart_runs_from_the_wheel_of_the_sdist_in_an_empty_folder(tmp_path: Path) -> None:
    """Only the libraries are those of this environment: the package itself comes from the wheel."""
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, tmp_path, folder=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    run(*pip, "install", "--no-deps", "--no-build-isolation", "--target", site, source, folder=empty, PYTHONPATH="")
    shipped = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {
        path.relative_to(site / "lit_align") for path in (site / "lit_align" / "configs").rglob("*.yaml")
    } == shipped
    words = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 1, "--samples.count", 1)
    quiet = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
    start = (sys.executable, site / "bin" / "lit-align", "fit", "--config", "quickstart")
    run(*start, *words, *quiet, folder=empty, PYTHONPATH=str(site))
    assert (empty / "runs" / "quickstart" / "policy" / "model.safetensors").is_file()
    where = "import lit_align; print(lit_align.__file__)"
    assert str(site) in run(sys.executable, "-c", where, folder=empty, PYTHONPATH=str(site))


def test_every_configuration_is_part_of_the_package() -> None:
    """The package's folder of configurations is the repository's."""
    inside = ROOT / "lit_align" / "configs"
    assert inside.resolve() == (ROOT / "configs").resolve()


def test_the_docker_file_is_sound() -> None:
    """The rules of hadolint that matter here: pinned images, no leftovers of apt and pip, no root, exec form."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    words = [line.partition(" ")[0] for line in lines]
    assert words[0] == "FROM"
    assert set(words) <= {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD", "SHELL"}
    for line in lines:
        if line.startswith("FROM"):
            assert ":" in line.split()[1]
            assert not line.split()[1].endswith(":latest")
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert "rm -rf /var/lib/apt/lists/*" in line
        if "pip install" in line:
            assert "--no-cache-dir" in line
        if line.startswith(("ENTRYPOINT", "CMD")):
            assert "[" in line
    assert words.index("USER") < words.index("ENTRYPOINT")
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if "--" not in word]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
