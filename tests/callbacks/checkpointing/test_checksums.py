"""Checksums distinguish complete files from damaged ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lit_align.callbacks.checkpointing.checksums import (
    ChecksumWriter,
    damage,
    newest_first,
    newest_intact,
    write_manifest,
)


def with_checksum(path: Path, content: bytes = b"weights") -> Path:
    with path.open("wb") as file:
        writer = ChecksumWriter(file)
        writer.write(content[:3])
        writer.write(memoryview(content[3:]))
        writer.close()
    return path


def test_the_content_comes_first_and_is_whole(tmp_path: Path) -> None:
    path = with_checksum(tmp_path / "a.ckpt")
    assert path.read_bytes().startswith(b"weightslit_align sha256 ")
    assert damage(path) is None


def test_every_shorter_file_and_every_flipped_bit_is_damaged(tmp_path: Path) -> None:
    path = with_checksum(tmp_path / "a.ckpt")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert damage(path) is not None, size
    for place in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert damage(path) is not None, place


def test_a_folder_has_its_checksums_in_its_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "a.ckpt"
    folder.mkdir()
    (folder / "one").write_bytes(b"1234")
    (folder / "two").write_bytes(b"5678")
    assert "no manifest.json" in str(damage(folder))
    write_manifest(folder)
    assert damage(folder) is None
    (folder / "one").write_bytes(b"1235")
    assert damage(folder) == "the SHA-256 of one is not that of what was written"
    (folder / "one").write_bytes(b"123")
    assert damage(folder) == "one has 3 bytes, but 4 were written"
    (folder / "one").unlink()
    assert damage(folder) == "one has 0 bytes, but 4 were written"
    (folder / "manifest.json").write_text("{")
    assert damage(folder) == "manifest.json is not readable"


def test_the_newest_intact_one_is_found_by_time_not_by_name(tmp_path: Path) -> None:
    for age, name in enumerate(("step=9.ckpt", "step=10.ckpt", "step=8.ckpt")):
        os.utime(with_checksum(tmp_path / name), ns=(10**9 - age, 10**9 - age))
    (tmp_path / "last.ckpt").symlink_to("step=9.ckpt")
    (tmp_path / "dangling.ckpt").symlink_to("nowhere.ckpt")
    assert [path.name for path in newest_first(tmp_path)] == ["step=9.ckpt", "step=10.ckpt", "step=8.ckpt"]
    os.truncate(tmp_path / "step=9.ckpt", 5)
    os.utime(tmp_path / "step=9.ckpt", ns=(10**9, 10**9))
    assert newest_intact(tmp_path) == tmp_path / "step=10.ckpt"
    assert newest_intact(tmp_path, but=tmp_path / "step=10.ckpt") == tmp_path / "step=8.ckpt"
    shutil.rmtree(tmp_path)
    assert newest_intact(tmp_path) is None
