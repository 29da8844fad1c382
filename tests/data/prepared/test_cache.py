from __future__ import annotations

import json
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data.prepared import cache
from lit_align.data.prepared.cache import MANIFEST, RECORDS, PreparedCache, default_folder
from lit_align.data.prepared.prepare import Split, prepare_split
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder
from lit_align.data.text.truncate import Cut
from lit_align.errors import DataError
from tests.data.conftest import Write
from tests.data.examples import pair_row
from tests.runner import forked

ROWS = [{**pair_row(number, 1 + number % 7), "id": number, "margin": number} for number in range(40)]


@dataclass
class Reader:
    """Prepare rows, and count how often they are read."""

    tokenize: Tokenize
    store: PreparedCache | None
    starts: list[str] = field(default_factory=list)

    def __call__(self, path: Path, bad_rows: BadRows = BadRows(), workers: int = 0) -> Split:
        def watch(readings: Any, words: str) -> Iterator[Any]:
            self.starts.append(words)
            yield from readings

        return prepare_split(SplitReader.of(str(path)), self.tokenize, bad_rows, self.store, workers, watch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(plain: PreTrainedTokenizerFast, folder: Path) -> Reader:
    return Reader(Tokenize(Encoder(plain), Cut(64)), PreparedCache(folder))


def contents(split: Split) -> Any:
    values = {name: value.tobytes() for name, value in vars(split.values).items()}
    return list(split.store), list(split.pairs), values, split.fingerprint, split.format, split.dropped, split.notes


def kept(folder: Path) -> Path:
    (found,) = (path for path in folder.iterdir() if path.is_dir())
    return found


def test_a_second_run_reads_what_the_first_one_kept(read: Reader, write: Write, plain: Any) -> None:
    path = write([*ROWS, {**ROWS[0], "chosen": " "}])
    first, second = (read(path, BadRows("drop", 0.1)) for _ in range(2))
    fresh = Reader(read.tokenize, None)(path, BadRows("drop", 0.1))
    assert len(read.starts) == 1
    assert contents(first) == contents(second) == contents(fresh)
    assert first.pairs[3].extra == {"id": 3, "margin": 3}
    assert first.pairs[3].where == "rows.jsonl:4"


def test_what_becomes_of_bad_rows_is_asked_anew(read: Reader, write: Write) -> None:
    path = write([*ROWS, {**ROWS[0], "chosen": " "}])
    messages = []
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows\.jsonl:41: chosen: found only blanks") as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert len(read(path, BadRows("drop", 0.1)).pairs) == 40
    assert len(read.starts) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_byte(
    read: Reader, write: Write, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[prepare_split.__module__], "_CHUNK", 7)
    path = write([*ROWS, {**ROWS[0], "chosen": " "}])
    read(path, BadRows("drop", 0.1))
    others = Reader(read.tokenize, PreparedCache(tmp_path / "others"))
    others(path, BadRows("drop", 0.1), workers)
    for name in (RECORDS, MANIFEST):
        one, other = (kept(each) / name for each in (tmp_path / "cache", tmp_path / "others"))
        assert one.read_bytes() == other.read_bytes()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def forge(path: Path) -> None:
    path.write_text(json.dumps({"sha256": "0", "format": "pairs", "counts": {"read": 1}}))


def execute(path: Path) -> None:
    path.write_bytes(pickle.dumps(Exploding(str(path.parent.parent / "executed"))))


@dataclass
class Exploding:
    """An object that writes a file when it is unpickled."""

    mark: str

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("damage", [cut, flip, forge, Path.unlink, execute])
@pytest.mark.parametrize("name", [RECORDS, MANIFEST])
@pytest.mark.security(14)
def test_what_is_damaged_is_said_in_one_line_and_made_again(
    read: Reader, write: Write, folder: Path, damage: Callable[[Path], None], name: str
) -> None:
    path = write(ROWS)
    whole = contents(read(path))
    before = {each: (kept(folder) / each).read_bytes() for each in (RECORDS, MANIFEST)}
    damage(kept(folder) / name)
    with pytest.warns(UserWarning, match=r"the prepared data in .* is damaged \(.*\); preparing it again") as caught:
        assert contents(read(path)) == whole
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert {each: (kept(folder) / each).read_bytes() for each in before} == before
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("step", ["digest", "to_disk", "read"])
def test_a_disk_that_fails_leaves_nothing_half(
    read: Reader, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write(ROWS)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(cache, step, fail)
        with pytest.raises(OSError, match="No space left"):
            read(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contents(read(path)) == contents(Reader(read.tokenize, None)(path))
    assert len([each for each in folder.iterdir() if each.is_dir()]) == 1


def test_a_process_killed_at_any_time_leaves_nothing_half(read: Reader, write: Write, folder: Path) -> None:
    path = write(ROWS)
    whole = contents(Reader(read.tokenize, None)(path))
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.05):
        child = os.fork()
        if not child:
            read(path)
            os._exit(0)
        time.sleep(delay)
        os.kill(child, 9)
        os.waitpid(child, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert contents(read(path)) == whole
        names = {each.name for each in folder.iterdir() if each.is_dir()}
        assert not any(name.startswith(".") for name in names)
        for name in (RECORDS, MANIFEST):
            (kept(folder) / name).unlink()
        kept(folder).rmdir()


def together(read: Reader, path: Path, processes: int) -> list[Any]:
    def work() -> None:
        try:
            print(read(path).fingerprint, len(read.starts))
        except DataError as error:
            print(error)

    return [ended.out.strip() for ended in forked([work] * processes)]


def test_of_several_processes_one_prepares(read: Reader, write: Write) -> None:
    found = [line.split() for line in together(read, write(ROWS), 4)]
    assert len({fingerprint for fingerprint, _ in found}) == 1
    assert sorted(int(starts) for _, starts in found) == [0, 0, 0, 1]


def test_if_one_fails_all_fail_with_its_message(read: Reader, write: Write) -> None:
    for path in (write([{**ROWS[0], "chosen": None}], "bad.jsonl"), write([], "empty.jsonl")):
        messages = together(read, path, 3)
        assert len(set(messages)) == 1
        assert path.name in messages[0]


def test_one_that_waits_says_so_and_goes_on(
    read: Reader, write: Write, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_LOCK_TIMEOUT", 0.05)
    path = write(ROWS)
    read(path)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with PreparedCache(folder)._locked(kept(folder).name):
            os.write(writing, b"locked")
            time.sleep(0.5)
        os._exit(0)
    os.read(reading, 10)
    with pytest.warns(UserWarning, match="waiting for another process that prepares the same data"):
        assert len(read(path).pairs) == 40
    os.waitpid(child, 0)


class TestFolder:
    @pytest.mark.security(14)
    def test_it_is_the_users_alone(self, read: Reader, write: Write, folder: Path) -> None:
        read(write(ROWS))
        assert folder.stat().st_mode & 0o777 == 0o700
        assert kept(folder).stat().st_mode & 0o777 == 0o700

    def test_where_it_is(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("LIT_ALIGN_CACHE", str(tmp_path))
        assert default_folder() == tmp_path
        monkeypatch.delenv("LIT_ALIGN_CACHE")
        assert default_folder() == Path.home() / ".cache" / "lit_align" / "data"

    def test_small_data_is_kept_only_where_somebody_says(self, write: Write, folder: Path) -> None:
        small = SplitReader.of(str(write(ROWS)))
        assert all(PreparedCache.from_setting(setting, small) is None for setting in ("auto", None, "none"))
        assert PreparedCache.from_setting(str(folder), small) == PreparedCache(folder)
        assert PreparedCache.from_setting(str(folder), SplitReader.of("owner/name")) is None
        large = folder.with_name("large.jsonl")
        with large.open("wb") as file:
            file.truncate(2**25)
        assert PreparedCache.from_setting("auto", SplitReader.of(str(large))) == PreparedCache(default_folder())
        assert PreparedCache.from_setting("none", SplitReader.of(str(large))) is None
