"""A model's fingerprint follows its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_align.callbacks.checkpointing import resume_check as module
from lit_align.callbacks.checkpointing.resume_check import model_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    return tmp_path


def test_it_follows_every_part_and_nothing_else(folder: Path) -> None:
    first = model_fingerprint(str(folder))
    (folder / "notes.txt").write_text("other")
    assert model_fingerprint(str(folder)) == first
    found = {first}
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_bytes(b"[]")
        found.add(model_fingerprint(str(folder)))
    assert len(found) == 4


@pytest.mark.parametrize(("place", "seen"), [(0, True), (99_999, True), (50_000, True), (50_001, False)])
def test_of_a_large_file_it_reads_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: int, seen: bool
) -> None:
    """100,000 bytes, three blocks of one byte: the first, the middle, and the last byte."""
    for name, value in {"_MAX_BYTES_READ_WHOLE": 2000, "_BLOCKS": 3, "_BLOCK_BYTES": 1}.items():
        monkeypatch.setattr(module, name, value)
    content = bytearray(100_000)
    (folder / "model.safetensors").write_bytes(content)
    first = model_fingerprint(str(folder))
    content[place if place != 50_000 else 49_999] = 1
    (folder / "model.safetensors").write_bytes(content)
    assert (model_fingerprint(str(folder)) != first) is seen


def test_what_is_no_model_has_none(tmp_path: Path) -> None:
    assert model_fingerprint(str(tmp_path)) is None
    assert model_fingerprint("owner/name") is None
