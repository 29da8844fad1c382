from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lit_align.data.formats.base import RawRow
from lit_align.data.sources.base import read_source
from lit_align.errors import DataError


def table(folder: Path, text: str | bytes, name: str = "rows.csv") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(source: str) -> list[RawRow | DataError]:
    return list(read_source(source))


def errors(source: str) -> list[str]:
    return [str(row) for row in read(source) if isinstance(row, DataError)]


class TestSeparatedValues:
    @pytest.mark.parametrize(("name", "mark"), [("rows.csv", ","), ("rows.tsv", "\t")])
    def test_rows_have_the_names_of_the_header_and_the_line_they_begin_in(
        self, tmp_path: Path, name: str, mark: str
    ) -> None:
        lines = [["prompt", "chosen"], ['"a\nb"', "c"], ["d", "e"]]
        rows = read(table(tmp_path, "\n".join(mark.join(line) for line in lines), name))
        assert rows == [
            RawRow({"prompt": "a\nb", "chosen": "c"}, f"{name}:2"),
            RawRow({"prompt": "d", "chosen": "e"}, f"{name}:4"),
        ]

    def test_bom_crlf_and_blank_lines_are_fine(self, tmp_path: Path) -> None:
        rows = read(table(tmp_path, b"\xef\xbb\xbfa,b\r\n\r\n1,\r\n"))
        assert rows == [RawRow({"a": "1", "b": ""}, "rows.csv:3")]

    def test_a_value_of_two_million_characters(self, tmp_path: Path) -> None:
        (row,) = read(table(tmp_path, "a\n" + "x" * 2_000_000))
        assert isinstance(row, RawRow)
        assert len(row.columns["a"]) == 2_000_000

    def test_a_row_of_another_length_is_named_and_the_others_are_read(self, tmp_path: Path) -> None:
        source = table(tmp_path, "a,b\n1,2\n1\n1,2,3\n3,4\n")
        assert errors(source) == [
            "rows.csv:3: found 1 values; expected 2, one for each column",
            "rows.csv:4: found 3 values; expected 2, one for each column",
        ]
        assert len(read(source)) == 4

    def test_a_quote_that_is_never_closed_is_named_where_it_opens(self, tmp_path: Path) -> None:
        (error,) = errors(table(tmp_path, 'a,b\n1,2\n"1,2\n3,4\n'))
        assert error.startswith("rows.csv:3: not a row of separated values:")

    def test_a_line_that_is_not_utf_8(self, tmp_path: Path) -> None:
        source = table(tmp_path, b"a,b\n1,caf\xe9\n3,4\n")
        assert errors(source)[0].startswith("rows.csv:2: not UTF-8: byte 0xe9 at place 6")
        assert read(source)[-1] == RawRow({"a": "3", "b": "4"}, "rows.csv:3")

    @pytest.mark.parametrize(
        ("header", "reason"), [("a,a", "column 'a' occurs twice"), ("a,", "a column has no name"), (",,", "twice")]
    )
    def test_a_header_that_names_no_columns(self, tmp_path: Path, header: str, reason: str) -> None:
        with pytest.raises(DataError, match=rf"rows\.csv:1: .*{reason}"):
            read(table(tmp_path, header + "\n1,2\n"))

    def test_a_header_alone_has_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no rows"):
            read(table(tmp_path, "a,b\n"))


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
@example(rows=[("\x00", '"'), ("\u2028", "\n")])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_what_the_csv_module_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, str]], mark: str) -> None:
    path = tmp_path / ("rows.csv" if mark == "," else "rows.tsv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    found = [tuple(row.columns.values()) for row in read(str(path)) if isinstance(row, RawRow)]
    assert found == rows
