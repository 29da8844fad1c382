"""A cache keeps prepared splits on disk, found again by their content, and maps them into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import pyarrow as pa
from filelock import FileLock, Timeout

from lit_align.data.prepared.arrow import SCHEMA, Arrow
from lit_align.data.prepared.fingerprint import findable, worth_keeping
from lit_align.data.prepared.read_split import Gather
from lit_align.data.prepared.row_counts import Tally
from lit_align.files import VARIABLE, at_home, digest, own_folder, to_disk, user_cache


@final
@dataclass(frozen=True)
class Facts:
    """What is to be known of some records beside them.

    Args:
        format: how their rows were understood.
        tally: what became of the rows.
    """

    format: str
    tally: Tally


Write: TypeAlias = Callable[[Arrow], None]
"""Takes a batch of records."""
Fill: TypeAlias = Callable[[Write], Facts]
"""Makes all records of a split, batch after batch."""


class Shelf(ABC):
    """Where records are kept."""

    @abstractmethod
    def __call__(self, key: Callable[[], str], fill: Fill) -> tuple[Arrow, Facts]:
        """The records of a split, made only if they are not there.

        Args:
            key: says by what they are found again; it changes with anything that they depend on.
            fill: makes them.
        """


@final
@dataclass(frozen=True)
class Memory(Shelf):
    """Keeps nothing for later."""

    def __call__(self, key: Callable[[], str], fill: Fill) -> tuple[Arrow, Facts]:
        """See the base class."""
        batches: list[Arrow] = []
        facts = fill(batches.append)
        return pa.Table.from_batches(batches, SCHEMA), facts


RECORDS, MANIFEST = "pairs.arrow", "manifest.json"


AUTO = "auto"


_PATIENCE = 5.0


class _DamagedError(Exception):
    """What is kept is not what was written."""


def shelf_of(cache: str | None, gather: Gather) -> Shelf:
    """Where the records of a split are kept.

    Args:
        cache: a folder; ``auto`` for the default folder if the split's files are large; None, or ``none``, to keep
            nothing.
        gather: where the pairs come from; what is not in local files is kept by ``datasets``, and nothing here.
    """
    if cache in (None, "none") or not findable(gather) or (cache == AUTO and not worth_keeping(gather)):
        return Memory()
    return Cache(default_folder() if cache == AUTO else at_home(cache))


def default_folder() -> Path:
    """Where prepared splits are kept unless told: ``LIT_ALIGN_CACHE``, or the user's own cache."""
    return user_cache() if os.environ.get(VARIABLE) else user_cache() / "data"


@final
@dataclass(frozen=True)
class Cache(Shelf):
    """Keeps each split in a folder of its own, which appears whole or not at all.

    Of several processes that ask for the same split, one prepares it while the others wait. If it fails, or is killed,
    the next one takes its place: none waits for a result that never comes. Only their owner may read the files, and
    they are checked against the digest of what was written before they are used.

    Args:
        folder: of all splits.
    """

    folder: Path

    def __call__(self, key: Callable[[], str], fill: Fill) -> tuple[Arrow, Facts]:
        """See the base class.

        Raises:
            PermissionError: others may write to the folder.
        """
        own_folder(self.folder, "data.cache")
        name = key()
        with self._alone(name):
            return self._kept(name) or self._made(name, fill)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        lock = FileLock(self.folder / f"{name}.lock", mode=0o600)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            warnings.warn("waiting for another process that prepares the same data", stacklevel=2)
            lock.acquire(timeout=-1)
        try:
            yield
        finally:
            lock.release()

    def _kept(self, name: str) -> tuple[Arrow, Facts] | None:
        target = self.folder / name
        if not target.exists():
            return None
        try:
            return read(target)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, _DamagedError) as error:
            warnings.warn(f"the prepared data in {target} is damaged ({error}); preparing it again", stacklevel=2)
            return None

    def _made(self, name: str, fill: Fill) -> tuple[Arrow, Facts]:
        for left in self.folder.glob(f".{name}.*"):
            shutil.rmtree(left)
        target = self.folder / name
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))
        try:
            _write(temporary, fill)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
            to_disk(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return read(target)


def read(target: Path) -> tuple[Arrow, Facts]:
    """The records in a folder, mapped into memory, and what is to be known of them."""
    manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text("utf-8"))
    if manifest.pop("seal") != _seal(manifest):
        raise _DamagedError(f"{MANIFEST} is not as it was written")
    if digest(target / RECORDS) != manifest["sha256"]:
        raise _DamagedError(f"{RECORDS} is not as it was written")
    table = pa.ipc.open_file(pa.memory_map(str(target / RECORDS))).read_all()
    if table.schema != SCHEMA:
        raise _DamagedError(f"{RECORDS} has other columns")
    return table, Facts(manifest["format"], Tally.from_json(manifest["tally"]))


def _write(folder: Path, fill: Fill) -> None:
    with pa.OSFile(str(folder / RECORDS), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        facts = fill(writer.write_batch)
    manifest = {"format": facts.format, "tally": facts.tally.as_json(), "sha256": digest(folder / RECORDS)}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "seal": _seal(manifest)}, indent=2), "utf-8")
    for path in (folder / RECORDS, folder / MANIFEST, folder):
        to_disk(path)


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
