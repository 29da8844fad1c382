"""A checkpoint is whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.callbacks import AtomicCheckpointIO, Checkpoints

OLD = {"step": 1, "weights": torch.zeros(3)}
NEW = {"step": 2, "weights": torch.ones(3)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def test_round_trip(saved: Path) -> None:
    assert AtomicCheckpointIO().load_checkpoint(saved)["step"] == 1
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_a_failure_half_way_keeps_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(NEW, saved)
    monkeypatch.undo()
    assert AtomicCheckpointIO().load_checkpoint(saved)["step"] == 1
    assert [path.name for path in saved.parent.iterdir()] == ["last.ckpt"]


def test_never_writes_in_the_system_s_temporary_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That folder may be on another file system, where a move is a copy that a kill cuts in two."""
    seen: list[Path] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert [path.parent for path in seen] == [saved.parent]


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_damaged_file_is_named_with_its_size(saved: Path, size: int) -> None:
    os.truncate(saved, size)
    with pytest.raises(ValueError, match=rf"last\.ckpt \({size} bytes\) is damaged"):
        AtomicCheckpointIO().load_checkpoint(saved)


class Payload:
    """Pickles to a call of ``os.mkdir``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save(Payload(tmp_path / "executed"), tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors and plain data"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_urls_and_missing_files() -> None:
    with pytest.raises(ValueError, match="not read from URLs"):
        AtomicCheckpointIO().load_checkpoint("http://localhost/x.ckpt")
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: nowhere\.ckpt"):
        AtomicCheckpointIO().load_checkpoint("nowhere.ckpt")


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep": 0}, {"keep": -2}])
def test_ranges(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"Checkpoints: {next(iter(wrong))} is"):
        Checkpoints(**wrong)
