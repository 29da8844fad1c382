from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lit_align.data.formats.base import RawRow
from lit_align.data.sources.base import locate_source, read_source
from lit_align.data.sources.hub import HubName
from lit_align.errors import DataError
from tests.data.examples import outcome, pair_row

ROWS = [pair_row(number) for number in range(5)]
load_really = datasets.load_dataset


def columns(source: str) -> list[Any]:
    return [row.columns if isinstance(row, RawRow) else row for row in read_source(source)]


class TestHubName:
    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("owner/name", ("owner/name", None, None, "train")),
            ("owner/name@refs/convert/parquet:test", ("owner/name", None, "refs/convert/parquet", "test")),
            ("owner/name#part@v1:train[:1000]", ("owner/name", "part", "v1", "train[:1000]")),
            ("owner/name:train[10%:20%]", ("owner/name", None, None, "train[10%:20%]")),
            ("owner/name:train+test[-5:]", ("owner/name", None, None, "train+test[-5:]")),
        ],
    )
    def test_parts(self, text: str, parts: tuple[Any, ...]) -> None:
        assert HubName.parse(text) == HubName(*parts)

    @pytest.mark.parametrize("text", ["name", "a/b/c", "owner/name:", "owner/name@", "ówner/name", "owner/name:a b"])
    def test_something_else(self, text: str) -> None:
        assert HubName.parse(text) is None


class TestHub:
    def test_what_the_library_raises_names_the_source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(*_: Any, **__: Any) -> None:
            raise RuntimeError("Dataset scripts are no longer supported")

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        with pytest.raises(DataError, match="owner/name: the data set cannot be read: RuntimeError: .*scripts"):
            columns("owner/name")

    def test_a_data_set_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(*_: Any, **__: Any) -> None:
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist on the Hub")

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        with pytest.raises(FileNotFoundError, match="doesn't exist on the Hub"):
            columns("owner/name")

    def test_the_connection_ends_in_the_middle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def rows() -> Iterator[dict[str, str]]:
            yield ROWS[0]
            raise ConnectionError("gone")

        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())
        found = read_source("stream:owner/name")
        assert next(found) == RawRow(ROWS[0], "stream:owner/name:1", null_filled=True)
        with pytest.raises(DataError, match="cannot be read: ConnectionError: 'gone'"):
            next(found)


class TestStream:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
        """The hub is a JSON file here, read as a stream by the library itself."""
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        calls: list[Any] = []

        def load_dataset(*names: str, **settings: Any) -> Any:
            calls.append((names, dict(settings)))
            del settings["revision"]
            return load_really("json", data_files={settings["split"]: str(path)}, **settings)

        monkeypatch.setattr("datasets.load_dataset", load_dataset)
        return calls

    def test_rows_are_iterated(self, asked: list[Any]) -> None:
        assert columns("stream:owner/name#part@v1:test") == ROWS
        settings = {"revision": "v1", "split": "test", "streaming": True}
        assert asked == [(("owner/name", "part"), settings)]

    @pytest.mark.parametrize(
        ("part", "rows"), [("[:2]", ROWS[:2]), ("[1:3]", ROWS[1:3]), ("[3:]", ROWS[3:]), ("[:]", ROWS)]
    )
    def test_a_slice_is_taken_while_reading(self, asked: list[Any], part: str, rows: list[Any]) -> None:
        assert columns(f"stream:owner/name:train{part}") == rows

    def test_rows_keep_their_numbers(self, asked: list[Any]) -> None:
        assert next(read_source("stream:owner/name:train[2:]")).where.endswith(":3")

    def test_no_more_rows_are_asked_for_than_are_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def rows() -> Iterator[dict[str, str]]:
            yield from ROWS[:2]
            raise AssertionError("read on")

        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())
        assert columns("stream:owner/name:train[:2]") == ROWS[:2]

    @pytest.mark.parametrize("split", ["train[:10%]", "train+test", "train[-5:]"])
    def test_splits_that_a_stream_does_not_know(self, asked: list[Any], split: str) -> None:
        with pytest.raises(DataError, match="a stream has no split"):
            columns(f"stream:owner/name:{split}")
        assert asked == []

    @pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "", "a/b/c"])
    def test_only_hub_names_are_streamed(self, asked: list[Any], name: str) -> None:
        with pytest.raises(FileNotFoundError):
            columns(f"stream:{name}")


class TestSaved:
    @pytest.fixture
    def one(self, tmp_path: Path) -> Path:
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
        return tmp_path / "one"

    @pytest.fixture
    def several(self, tmp_path: Path) -> Path:
        splits = {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS[3:])}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "several")
        return tmp_path / "several"

    def test_a_data_set(self, one: Path) -> None:
        assert columns(str(one)) == ROWS
        assert [row.where for row in read_source(str(one))][1] == f"{one}:2"

    def test_a_split(self, several: Path) -> None:
        assert columns(f"{several}:test") == ROWS[3:]

    @pytest.mark.parametrize("split", ["", ":other"])
    def test_a_split_must_be_one_of_them(self, several: Path, split: str) -> None:
        with pytest.raises(DataError, match="holds the splits train, test; name one: .*several:train"):
            columns(f"{several}{split}")

    def test_a_split_of_a_folder_without_splits(self, one: Path) -> None:
        with pytest.raises(DataError, match="one data set without splits; leave out ':train'"):
            columns(f"{one}:train")

    def test_a_folder_that_is_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"is a folder; expected a file .*/\*\.parquet for all its files"):
            columns(str(tmp_path))

    def test_a_damaged_folder(self, one: Path) -> None:
        for path in one.glob("*.arrow"):
            path.write_bytes(b"garbage")
        with pytest.raises(DataError, match="the data set cannot be read"):
            columns(str(one))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
    @given(
        content=st.binary(max_size=60), name=st.sampled_from(["state.json", "dataset_info.json", "dataset_dict.json"])
    )
    def test_whatever_lies_in_the_folder(self, one: Path, content: bytes, name: str) -> None:
        path = one / name
        before = path.read_bytes() if path.is_file() else None
        path.write_bytes(content)
        found = outcome(lambda: columns(str(one)))
        path.unlink() if before is None else path.write_bytes(before)
        assert str(one) in str(found) if isinstance(found, DataError) else found == ROWS


class TestPattern:
    def test_shards_are_read_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        for number in (1, 0):
            datasets.Dataset.from_list(ROWS[number * 2 : number * 2 + 2]).to_parquet(tmp_path / f"{number:04}.parquet")
        rows = list(read_source(f"{tmp_path}/*.parquet"))
        assert [row.columns for row in rows if isinstance(row, RawRow)] == ROWS[:4]
        assert rows[2].where == f"{tmp_path}/0001.parquet:1"

    @pytest.mark.parametrize("pattern", ["**/*.jsonl", "part-[0-9].jsonl", "part-?.jsonl"])
    def test_patterns(self, tmp_path: Path, pattern: str) -> None:
        (tmp_path / "part-1.jsonl").write_text(json.dumps(ROWS[0]))
        assert columns(f"{tmp_path}/{pattern}") == ROWS[:1]

    def test_nothing_matches(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
            columns(f"{tmp_path}/*.parquet")


@settings(deadline=None)
@example(source="~no-such-user")
@given(source=st.text(max_size=40) | st.from_regex(r"(stream:)?\w+/\w+[@#:\[\]%*?\w]*", fullmatch=True))
def test_whatever_the_name_it_is_a_place_or_not_found(source: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        assert str(outcome(lambda: locate_source(source)))


FORMS: list[tuple[str | None, list[str] | None]] = [
    ("torch", None),
    ("torch", ["prompt"]),
    ("numpy", None),
    ("pandas", None),
    ("arrow", None),
    (None, ["prompt"]),
]


@pytest.mark.parametrize(("kind", "names"), FORMS)
def test_the_format_a_data_set_was_last_looked_at_in_is_not_in_its_rows(
    kind: str | None, names: list[str] | None, tmp_path: Path
) -> None:
    said = [{"role": "user", "content": "a", "name": None}]
    rows = [{"prompt": said, "score": 2.5, "when": number} for number in range(3)]
    data = datasets.Dataset.from_list(rows)
    data.set_format(kind, columns=names)
    data.save_to_disk(str(tmp_path / "saved"))
    assert columns(str(tmp_path / "saved")) == rows


@pytest.mark.parametrize("kind", ["image", "images", "sound"])
def test_images_and_sound_are_not_decoded(kind: str, tmp_path: Path) -> None:
    """Bytes that are no image would stop the run, and so would a missing library."""
    broken = {"bytes": b"no image", "path": None}
    row = {"prompt": "a", "media": [broken] if kind == "images" else broken}
    data = datasets.Dataset.from_list([row])
    feature = {"image": datasets.Image(), "images": datasets.List(datasets.Image()), "sound": datasets.Audio()}[kind]
    data.cast_column("media", feature).save_to_disk(str(tmp_path / "saved"))
    assert columns(str(tmp_path / "saved")) == [row]


@pytest.mark.parametrize("kind", ["image", "images", "sound"])
def test_images_and_sound_of_a_stream_are_not_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"bytes": b"no image", "path": None}
    row = {"prompt": "a", "media": [broken] if kind == "images" else broken}
    feature = {"image": datasets.Image(), "images": datasets.List(datasets.Image()), "sound": datasets.Audio()}[kind]
    stream = datasets.Dataset.from_list([row]).cast_column("media", feature).to_iterable_dataset()
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: stream)
    assert columns("stream:owner/name") == [row]


def test_columns_of_json_are_read(tmp_path: Path) -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "tools": datasets.Json()})
    row = {"prompt": "a", "tools": [{"name": "find"}]}
    datasets.Dataset.from_list([row], features=features).save_to_disk(str(tmp_path / "saved"))
    assert columns(str(tmp_path / "saved")) == [row]


def test_missing_keys_that_arrow_fills_are_marked(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert all(isinstance(row, RawRow) and row.null_filled for row in read_source(str(tmp_path / "saved")))
