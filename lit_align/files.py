"""Helpers for files: the user's folders, digests, and durable writes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "LIT_ALIGN_CACHE"


def at_home(name: str | Path) -> Path:
    """Expand a leading ``~`` or ``~user`` to that user's folder, if the user exists.

    >>> at_home("~no-such-user/x")
    PosixPath('~no-such-user/x')
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 (Path.expanduser raises for an unknown user)


def user_cache() -> Path:
    """Return the default cache folder: ``LIT_ALIGN_CACHE``, or a folder in the user's cache."""
    folder = os.environ.get(VARIABLE)
    return at_home(folder) if folder else Path.home() / ".cache" / "lit_align"


def own_folder(folder: Path, setting: str) -> None:
    """Create a folder that only its owner may use, or check that an existing one is not writable by others.

    Raises:
        PermissionError: the folder belongs to another user, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        problem = "others may write to it" if status.st_uid == os.getuid() else "it belongs to another user"
        raise PermissionError(f"{setting} {folder}: {problem}; expected a folder that only you may write to")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_digest(package: Path) -> str:
    """Return a digest of the Python sources of a package at any depth, and of ``types`` and ``errors`` beside it."""
    paths = (*sorted(package.rglob("*.py")), package.parent / "types.py", package.parent / "errors.py")
    parts = [f"{path.relative_to(package.parent)}".encode() + b"\0" + path.read_bytes() for path in paths]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
