"""Checksums of checkpoints: written after the content, verified before it is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from lit_align.files import digest, to_disk

MANIFEST = "manifest.json"
"""Size and SHA-256 of each file of a folder."""
_MARK = b"lit_align sha256 "
_LENGTH = len(_MARK) + 64 + 1 + 20 + 1
"""Bytes of a file's checksum line: the mark, the digest, a blank, the size in 20 digits, and the end of the line."""


class ChecksumWriter:
    """Passes bytes on to a file while it counts and digests them; ``close`` appends size and SHA-256.

    Readers that go by the beginning of a file, such as ``torch.load``, ignore what is appended.

    Args:
        file: open for writing in binary mode.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.failed: OSError | None = None
        self._file = file
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, content: bytes | memoryview) -> int:
        """Write; the first failure is kept in ``failed``, for callers that raise another error because of it."""
        self._digest.update(content)
        self._size += memoryview(content).nbytes
        try:
            return self._file.write(content)
        except OSError as error:
            self.failed = self.failed or error
            raise

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def close(self) -> None:
        """Append the checksum and wait until everything is on the disk."""
        self._file.write(_checksum_line(self._digest.hexdigest(), self._size))
        self._file.flush()
        os.fsync(self._file.fileno())


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder whose other files are complete."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    }
    for name in files:
        to_disk(folder / name)
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    to_disk(folder / MANIFEST)
    to_disk(folder)


def damage(path: Path) -> str | None:
    """Return what is wrong with a file or folder that has checksums; None if it is what was written."""
    return _damage_of_folder(path) if path.is_dir() else _damage_of_file(path)


def _damage_of_file(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _LENGTH))
        line = file.read()
        if len(line) < _LENGTH or not line.startswith(_MARK):
            return f"it ends after {size:,} bytes without a checksum: cut short, or not written by lit_align"
        file.seek(0)
        actual = _checksum_line(_digest_beginning(file, size - _LENGTH), size - _LENGTH)
    return None if actual == line else f"its checksum says {_describe(line)}, but it has {_describe(actual)}"


def _checksum_line(sha256: str, size: int) -> bytes:
    return _MARK + f"{sha256} {size:020d}\n".encode()


def _describe(line: bytes) -> str:
    sha256, _, size = line[len(_MARK) :].decode(errors="replace").strip().partition(" ")
    return f"{size.lstrip('0')} bytes with SHA-256 {sha256[:12]}…"


def _digest_beginning(file: IO[bytes], size: int) -> str:
    sha256 = hashlib.sha256()
    while size > 0 and (part := file.read(min(size, 1 << 22))):
        sha256.update(part)
        size -= len(part)
    return sha256.hexdigest()


def _damage_of_folder(folder: Path) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"it has no {MANIFEST}: it was not written to its end, or not by lit_align"
    try:
        files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is not readable"
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else 0
        if size != expected["bytes"]:
            return f"{name} has {size:,} bytes, but {expected['bytes']:,} were written"
        if digest(path) != expected["sha256"]:
            return f"the SHA-256 of {name} is not that of what was written"
    return None


def put_in_place(partial: Path, target: Path) -> None:
    """Rename a complete file or folder to its target, then remove what had that name before."""
    older = target.with_name(f".{target.name}.older")
    if target.is_dir() or (target.exists() and partial.is_dir()):  # which no rename replaces
        target.rename(older)
    partial.replace(target)
    to_disk(target.parent)
    if older.exists():
        remove(older)


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def restore_older(folder: Path) -> None:
    """Repair what a process that was killed inside ``put_in_place`` left behind."""
    for older in folder.glob(".*.older"):
        target = folder / older.name.removeprefix(".").removesuffix(".older")
        if not target.exists():
            older.rename(target)
        else:
            remove(older)


def newest_first(folder: Path) -> Sequence[Path]:
    """Return the checkpoints of a folder, the one written last first; links to them count once."""
    checkpoints = {path.resolve() for path in folder.glob("*.ckpt") if path.exists()}
    return sorted(checkpoints, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def newest_intact(folder: Path, but: Path | None = None) -> Path | None:
    """Return the undamaged checkpoint of a folder that was written last, except ``but``; None if there is none."""
    others = (path for path in newest_first(folder) if but is None or path != but.resolve())
    return next((path for path in others if damage(path) is None), None)
