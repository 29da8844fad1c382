from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_align.data.formats.base import RawRow
from lit_align.data.sources.base import read_source
from lit_align.errors import DataError
from tests.data.conftest import Write
from tests.data.examples import pair_row

ROWS = [pair_row(number) for number in range(3)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def columns(source: Path | str) -> list[Any]:
    return [row.columns if isinstance(row, RawRow) else row for row in read_source(str(source))]


def only_error(source: Path) -> str:
    """The text of the only line that holds no row."""
    (error,) = (row for row in read_source(str(source)) if isinstance(row, DataError))
    return str(error)


class TestGoodFiles:
    @pytest.mark.parametrize(
        ("name", "pack"),
        [
            ("rows.jsonl", bytes),
            ("rows.jsonl.gz", gzip.compress),
            ("rows.jsonl.bz2", bz2.compress),
            ("rows.jsonl.xz", lzma.compress),
            ("rows.jsonl.zst", lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)),
        ],
    )
    def test_every_compression_gives_the_same_rows(
        self, tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
    ) -> None:
        (tmp_path / name).write_bytes(pack(LINES))
        assert columns(tmp_path / name) == ROWS

    def test_bom_crlf_and_blank_lines_are_fine_and_lines_are_counted_as_an_editor_does(self, write: Write) -> None:
        path = write([b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r", b"\r", json.dumps(ROWS[1]).encode()])
        rows = list(read_source(str(path)))
        assert [row.where for row in rows] == ["rows.jsonl:1", "rows.jsonl:3"]
        assert columns(path) == ROWS[:2]

    @pytest.mark.parametrize(
        "text", ["😀 e\u0301", "\u202eright to left", "nul \x00 byte", "line\u2028separator", "\ufeff"]
    )
    def test_text_comes_back_as_it_was_written(self, write: Write, text: str) -> None:
        assert columns(write([{"prompt": text}])) == [{"prompt": text}]

    def test_a_json_array_keeps_the_lines_of_its_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text("\n[\n" + ",\n".join(json.dumps(row, indent=1) for row in ROWS) + "\n]\n")
        rows = list(read_source(str(path)))
        assert [row.columns for row in rows if isinstance(row, RawRow)] == ROWS
        assert [row.where for row in rows] == ["rows.json:3", "rows.json:8", "rows.json:13"]

    def test_json_that_is_no_array_is_read_line_by_line(self, tmp_path: Path) -> None:
        (tmp_path / "rows.json").write_bytes(LINES)
        assert columns(tmp_path / "rows.json") == ROWS

    def test_parquet(self, tmp_path: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
        assert columns(tmp_path / "rows.parquet") == ROWS

    def test_dates_stay_text(self, write: Write) -> None:
        assert columns(write([{"prompt": "2024-01-01T00:00:00"}])) == [{"prompt": "2024-01-01T00:00:00"}]


class TestBadLines:
    """Each is an error with file and line, and the lines around it are still read."""

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"prompt": "a", ', "not valid JSON"),
            (b'{"prompt": "a"} {"prompt": "b"}', "more text after the object"),
            (b'{"prompt": "caf\xe9"}', "not UTF-8: byte 0xe9 at place 16"),
            (b'{"prompt": "\\ud83d"}', "unpaired surrogate \\ud83d"),
            (b'{"prompt": "a", "prompt": "b"}', "key 'prompt' occurs twice"),
            (b'["a", "b"]', "found a list; expected an object"),
            (b"null", "found null; expected an object"),
            (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
        ],
    )
    def test_a_bad_line_is_named(self, write: Write, line: bytes, reason: str) -> None:
        path = write([ROWS[0], line, ROWS[1]])
        error = only_error(path)
        assert error.startswith("rows.jsonl:2: ")
        assert reason in error
        assert len(error) < 400
        assert [row for row in columns(path) if not isinstance(row, DataError)] == ROWS[:2]

    def test_broken_json_shows_how_the_line_begins(self, write: Write) -> None:
        assert 'it begins \'{"prompt": aaaa' in only_error(write([b'{"prompt": ' + b"a" * 500]))

    def test_an_escaped_pair_of_surrogates_is_an_emoji(self, write: Write) -> None:
        assert columns(write([b'{"prompt": "\\ud83d\\ude00"}'])) == [{"prompt": "😀"}]

    @pytest.mark.parametrize(
        "text", ['[\n{"prompt": "a"}\n]', '[{"prompt": "a"}]', '[{"prompt": "a"},\n{"prompt": "b"}]']
    )
    def test_a_list_of_all_rows_under_the_name_of_lines(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "rows.jsonl").write_text(text)
        first = next(iter(read_source(str(tmp_path / "rows.jsonl"))))
        assert str(first).startswith("rows.jsonl:1: ")
        assert str(first).endswith("If the file is one list of all rows, name it .json")

    @pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
    def test_a_list_as_first_row(self, tmp_path: Path, name: str) -> None:
        text = '["a", "b"]\n' if name == "rows.jsonl" else '[["a", "b"]]'
        (tmp_path / name).write_text(text)
        assert only_error(tmp_path / name) == f"{name}:1: found a list; expected an object with the columns of one row"

    def test_a_row_of_an_array(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        path.write_text('[{"prompt": "a"},\n3]')
        assert only_error(path) == "rows.json:2: found a number; expected an object with the columns of one row"


class TestBadFiles:
    @pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
    def test_no_rows(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "empty.jsonl"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"empty\.jsonl: no rows"):
            columns(path)

    def test_an_empty_array_has_no_rows(self, tmp_path: Path) -> None:
        (tmp_path / "empty.json").write_text(" [ ] ")
        with pytest.raises(DataError, match="no rows"):
            columns(tmp_path / "empty.json")

    @pytest.mark.parametrize("text", ['[{"a": 1}', '[{"a": 1} {"a": 2}]', "[{", '[{"a": 1},]', "["])
    def test_an_array_that_does_not_end_well(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(DataError, match=r"rows\.json:1: "):
            columns(tmp_path / "rows.json")

    @pytest.mark.parametrize(
        "name", ["rows.jsonl.gz", "rows.jsonl.bz2", "rows.jsonl.xz", "rows.jsonl.zst", "rows.parquet"]
    )
    def test_a_file_that_was_cut_or_is_something_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(gzip.compress(LINES * 50)[:100])
        with pytest.raises(DataError, match=name):
            columns(tmp_path / name)

    def test_an_unknown_kind_of_file_and_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "rows.txt").write_text("a,b")
        with pytest.raises(DataError, match=r"unknown kind of file; expected \*\.jsonl"):
            columns(tmp_path / "rows.txt")
        with pytest.raises(DataError, match="is a folder; expected a file"):
            columns(tmp_path)


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        """What was asked of the hub; it answers with the good rows."""
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, revision: str | None, split: str) -> datasets.Dataset:
            calls.append((name, revision, split))
            return datasets.Dataset.from_list(ROWS)

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return calls

    @pytest.mark.parametrize(
        ("source", "call"),
        [
            ("owner/name", ("owner/name", None, "train")),
            ("owner/name:test", ("owner/name", None, "test")),
            ("owner/name@v1.2/x:test_prefs", ("owner/name", "v1.2/x", "test_prefs")),
        ],
    )
    def test_a_hub_name_has_a_revision_and_a_split(
        self, asked: list[tuple[Any, ...]], source: str, call: tuple[Any, ...]
    ) -> None:
        rows = list(read_source(source))
        assert asked == [call]
        assert rows[2] == RawRow(ROWS[2], f"{source}:3", null_filled=True)

    @pytest.mark.parametrize(
        "source",
        [
            "missing.jsonl",
            "owner/missing.jsonl",
            "owner/missing.jsonl.gz",
            "./owner/name",
            "/owner/name",
            "~/name",
            "../owner/name",
            "name",
            "a/b/c",
            "owner/name.parquet",
            "",
        ],
    )
    def test_a_missing_path_is_never_looked_up(self, asked: list[tuple[Any, ...]], source: str) -> None:
        with pytest.raises((FileNotFoundError, DataError), match=source.replace("~", ".*") or "folder"):
            columns(source)
        assert asked == []

    def test_a_name_that_begins_with_a_folder_here_is_local(
        self, asked: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "out").mkdir()
        with pytest.raises(FileNotFoundError, match="data file not found: out/pairs"):
            columns("out/pairs")
        assert asked == []


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
@pytest.mark.parametrize("name", ["f.jsonl", "f.json", "f.csv", "f.tsv", "f.jsonl.gz", "f.jsonl.zst", "f.parquet"])
def test_whatever_the_bytes_there_are_rows_or_data_errors(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found: list[RawRow | DataError] = []
    try:
        found += read_source(str(path))
    except DataError as error:
        found.append(error)
    assert found
    assert all(name in row.where for row in found)


@pytest.mark.parametrize("folder", ["run[1]", "a*b", "what?"])
@pytest.mark.parametrize("name", ["pairs.jsonl", "*.jsonl", "p[a]irs.jsonl"])
def test_a_folder_with_the_characters_of_patterns_is_looked_up_under_its_name(
    folder: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "pairs.jsonl").write_text(json.dumps(pair_row(0)) + "\n", "utf-8")
    (row,) = read_source(str(tmp_path / folder / name))
    assert isinstance(row, RawRow)
    assert row.columns == pair_row(0)


def test_a_file_with_the_characters_of_a_pattern_comes_before_the_pattern(tmp_path: Path) -> None:
    for number, name in enumerate(("pairs[1].jsonl", "pairs1.jsonl")):
        (tmp_path / name).write_text(json.dumps(pair_row(number)) + "\n", "utf-8")
    (row,) = read_source(str(tmp_path / "pairs[1].jsonl"))
    assert isinstance(row, RawRow)
    assert row.columns == pair_row(0)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_line_separators_inside_texts_survive(mark: str, suffix: str, tmp_path: Path) -> None:
    text = f"one{mark}two"
    path = tmp_path / f"rows.{suffix}"
    row = json.dumps({"prompt": text}, ensure_ascii=False) if suffix == "jsonl" else f'prompt\n"{text}"'
    path.write_bytes(f"{row}\n".encode())
    (read,) = read_source(str(path))
    assert isinstance(read, RawRow)
    assert read.columns == {"prompt": text}
