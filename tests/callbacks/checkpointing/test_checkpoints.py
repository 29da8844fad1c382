"""Checkpoints are written atomically."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lit_align.callbacks import AtomicCheckpointIO, Checkpoints
from tests.runner import BASE, SHORT, distributed, lit_align, metrics, ok

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
    """The temporary folder may be on another file system, where a move is a copy that SIGKILL can interrupt."""
    seen: list[Path] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append(self)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert [path.parent for path in seen] == [saved.parent]


@pytest.mark.parametrize("size", [0, 10, 300])
@pytest.mark.fault("D03", "D04", "D05d", "D06b", "L04", "L04b")
def test_a_damaged_file_is_named_with_its_size(saved: Path, size: int) -> None:
    os.truncate(saved, size)
    with pytest.raises(ValueError, match=rf"last\.ckpt is damaged: it ends after {size} bytes without a checksum"):
        AtomicCheckpointIO().load_checkpoint(saved)


@pytest.mark.fault("D03b")
def test_any_flipped_bit_is_seen_and_the_intact_one_named(saved: Path) -> None:
    """Damage is detected in the bytes of a weight, too, where the file can still be read."""
    other = saved.with_name("other.ckpt")
    AtomicCheckpointIO().save_checkpoint(NEW, other)
    content = bytearray(saved.read_bytes())
    for place in range(0, len(content), 97):
        content[place] ^= 1
        saved.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: .*; the newest intact one beside it is .*other"):
            AtomicCheckpointIO().load_checkpoint(saved)
        content[place] ^= 1
    saved.write_bytes(content)
    assert AtomicCheckpointIO().load_checkpoint(saved)["step"] == 1


def test_a_file_that_others_wrote_is_not_taken(tmp_path: Path) -> None:
    torch.save(OLD, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="without a checksum: cut short, or not written by lit_align"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "foreign.ckpt")


@pytest.mark.fault("L09")
def test_no_room_is_seen_before_anything_is_written(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(saved))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 89, 11))
    with pytest.raises(OSError, match="no room for a checkpoint of 12 bytes, 11 are free") as error:
        AtomicCheckpointIO().save_checkpoint(NEW, saved)
    assert error.value.errno == errno.ENOSPC
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 88, 12))
    AtomicCheckpointIO().save_checkpoint(NEW, saved)


class Payload:
    """An object that calls ``os.mkdir`` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.security(1)
def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A checksum detects accidents only; a hostile checkpoint is stopped by what the reader accepts."""
    evil = {"state_dict": Payload(tmp_path / "executed")}
    AtomicCheckpointIO().save_checkpoint(evil, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="holds more than tensors and plain data"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


@pytest.mark.fault("D06d")
@pytest.mark.security(3)
def test_urls_and_missing_files() -> None:
    with pytest.raises(ValueError, match="not read from URLs"):
        AtomicCheckpointIO().load_checkpoint("http://localhost/x.ckpt")
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: nowhere\.ckpt"):
        AtomicCheckpointIO().load_checkpoint("nowhere.ckpt")


def damaged(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    return path


@pytest.mark.fault("D06", "D08")
def test_last_is_the_newest_that_is_intact_and_it_is_said(saved: Path) -> None:
    callback = Checkpoints()
    callback.dirpath = str(saved.parent)
    trainer = Trainer(logger=False, accelerator="cpu")
    assert callback._find_last_checkpoints(trainer) == {str(saved)}
    newer = saved.with_name("step=2.ckpt")
    AtomicCheckpointIO().save_checkpoint(NEW, newer)
    assert callback._find_last_checkpoints(trainer) == {str(newer)}
    damaged(newer)
    with pytest.warns(UserWarning, match=r"step=2\.ckpt is damaged: its checksum says .*; going on from .*last\.ckpt"):
        assert callback._find_last_checkpoints(trainer) == {str(saved)}
    damaged(saved)
    with pytest.raises(ValueError, match=r"no checkpoint is intact:\n.*last\.ckpt is damaged.*\n.*step=2\.ckpt is"):
        callback._find_last_checkpoints(trainer)


@pytest.mark.resume("from the checkpoint before a damaged one")
@pytest.mark.fault("D06", "D08")
def test_a_run_goes_on_from_the_one_before_a_damaged_one(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows),
        *("--checkpoints.every_n_steps", 1, "--trainer.max_steps", 2, "--ckpt_path", "last"),
    )
    ok(lit_align(*words))
    first = metrics(run)
    damaged(run / "checkpoints" / "step=2.ckpt")
    ok(lit_align(*words))
    assert metrics(run) == first
    damaged(run / "checkpoints" / "step=1.ckpt")
    damaged(run / "checkpoints" / "step=2.ckpt")
    ended = lit_align(*words)
    assert ended.code == 2
    assert "no checkpoint is intact" in ended.out
    assert "Traceback" not in ended.out


@pytest.mark.long
def test_processes_do_not_agree_on_a_time(rows: Path, tmp_path: Path) -> None:
    words = (
        *("fit", "--run", tmp_path / "run", *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows),
        *("--data.validation", rows, "--trainer.max_steps", 1, "--trainer.val_check_interval", "00:00:00:01"),
    )
    for ended in distributed(2, *words):
        assert ended.code == 2
        assert "trainer.val_check_interval is a time (1 s), and 2 processes do not agree on the batch" in ended.out
    ok(lit_align(*words))


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep": 0}, {"keep": -2}])
def test_ranges(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"Checkpoints: {next(iter(wrong))} is"):
        Checkpoints(**wrong)
