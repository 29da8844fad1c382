"""The disk: folders of the user's own, files that are whole or not there, and digests of what they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

VARIABLE = "LIT_ALIGN_CACHE"


def at_home(name: str | Path) -> Path:
    """A path in which a leading ``~`` or ``~user`` is that user's folder, where there is such a user.

    >>> at_home("~no-such-user/x")
    PosixPath('~no-such-user/x')
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111 (the one of Path raises for a user that is not there)


def user_cache() -> Path:
    """Where things are kept for later runs unless told: ``LIT_ALIGN_CACHE``, or the user's own cache."""
    given = os.environ.get(VARIABLE)
    return at_home(given) if given else Path.home() / ".cache" / "lit_align"


def own_folder(folder: Path, setting: str) -> None:
    """Make a folder for its owner alone, or check that it is one.

    Args:
        folder: the folder.
        setting: that names it, for messages.

    Raises:
        PermissionError: it is another user's, or others may write to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        whose = "others may write to it" if found.st_uid == os.getuid() else "it is another user's"
        raise PermissionError(f"{setting} {folder}: {whose}; expected a folder of your own that no other may write to")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
