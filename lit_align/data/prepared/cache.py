"""The cache of prepared splits: Arrow files that are found by their content and mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import pyarrow as pa
from filelock import FileLock, Timeout

from lit_align.data.prepared.arrow import SCHEMA, Arrow
from lit_align.data.prepared.fingerprint import is_large, is_local
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import RowCounts
from lit_align.files import VARIABLE, at_home, digest, own_folder, to_disk, user_cache

RECORDS, MANIFEST = "pairs.arrow", "manifest.json"

_LOCK_TIMEOUT = 5.0


@final
@dataclass(frozen=True)
class Manifest:
    """What is stored beside the records of a split.

    Args:
        format: formats of its rows.
        counts: what became of the rows.
    """

    format: str
    counts: RowCounts


Write: TypeAlias = Callable[[Arrow], None]
"""Writes a record batch."""
Build: TypeAlias = Callable[[Write], Manifest]
"""Builds all records of a split, batch by batch."""


class _DamagedError(Exception):
    """The stored content is not what was written."""


def build_in_memory(build: Build) -> tuple[Arrow, Manifest]:
    """Build the records of a split without storing them."""
    batches: list[Arrow] = []
    manifest = build(batches.append)
    return pa.Table.from_batches(batches, SCHEMA), manifest


def default_folder() -> Path:
    """Return the default cache folder: ``LIT_ALIGN_CACHE``, or a folder in the user's cache."""
    return user_cache() if os.environ.get(VARIABLE) else user_cache() / "data"


@final
@dataclass(frozen=True)
class PreparedCache:
    """Stores each prepared split in a folder that appears complete or not at all.

    If several processes request the same split, one builds it while the others wait; if that one fails or is killed,
    the next takes over. The files are private to their owner, and their checksums are verified before use.

    Args:
        folder: folder of all splits.
    """

    folder: Path

    @classmethod
    def from_setting(cls, setting: str | None, reader: SplitReader) -> PreparedCache | None:
        """Return the cache for a split; None if it is not to be cached.

        Args:
            setting: ``data.cache``: a folder; ``auto`` for the default folder if the files of the split are large;
                None or ``none`` for no cache.
            reader: reads the split; only splits in local files are cached here.
        """
        if setting in (None, "none") or not is_local(reader) or (setting == "auto" and not is_large(reader)):
            return None
        return cls(default_folder() if setting == "auto" else at_home(setting))

    def get(self, key: str, build: Build) -> tuple[Arrow, Manifest]:
        """Return the records of a split, and build them first if they are missing or damaged.

        Args:
            key: cache key; it changes with anything that the records depend on.
            build: builds the records.

        Raises:
            PermissionError: others may write to the folder.
        """
        own_folder(self.folder, "data.cache")
        with self._locked(key):
            return self._load(key) or self._store(key, build)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        lock = FileLock(self.folder / f"{key}.lock", mode=0o600)
        try:
            lock.acquire(timeout=_LOCK_TIMEOUT)
        except Timeout:
            warnings.warn("waiting for another process that prepares the same data", stacklevel=2)
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def _load(self, key: str) -> tuple[Arrow, Manifest] | None:
        target = self.folder / key
        if not target.exists():
            return None
        try:
            return read(target)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, _DamagedError) as error:
            warnings.warn(f"the prepared data in {target} is damaged ({error}); preparing it again", stacklevel=2)
            return None

    def _store(self, key: str, build: Build) -> tuple[Arrow, Manifest]:
        for leftover in self.folder.glob(f".{key}.*"):
            shutil.rmtree(leftover)
        target = self.folder / key
        temporary = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.folder))
        try:
            _write(temporary, build)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            to_disk(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return read(target)


def read(target: Path) -> tuple[Arrow, Manifest]:
    """Verify the files in a folder, map the records into memory, and read their manifest."""
    manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text("utf-8"))
    if manifest.pop("checksum") != _checksum(manifest):
        raise _DamagedError(f"{MANIFEST} is not as it was written")
    if digest(target / RECORDS) != manifest["sha256"]:
        raise _DamagedError(f"{RECORDS} is not as it was written")
    table = pa.ipc.open_file(pa.memory_map(str(target / RECORDS))).read_all()
    if table.schema != SCHEMA:
        raise _DamagedError(f"{RECORDS} has other columns")
    return table, Manifest(manifest["format"], RowCounts.from_json(manifest["counts"]))


def _write(folder: Path, build: Build) -> None:
    with pa.OSFile(str(folder / RECORDS), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        built = build(writer.write_batch)
    manifest = {"format": built.format, "counts": built.counts.as_json(), "sha256": digest(folder / RECORDS)}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=2), "utf-8")
    for path in (folder / RECORDS, folder / MANIFEST, folder):
        to_disk(path)


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
