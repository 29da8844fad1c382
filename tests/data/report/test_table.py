from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from rich.console import Console

from lit_align.data.prepared.store import PairStore
from lit_align.data.report.lengths import LengthReport, Marks, length_report
from lit_align.data.report.table import table, warnings
from tests.data.report.test_lengths import STORE, pair, response


def printed(reports: Mapping[str, LengthReport], width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table(reports))
    return console.export_text()


def large() -> LengthReport:
    """A split with long numbers, sources and reasons."""
    marks = Marks(
        scores=np.array([[2.0, 1.0], [3.0, 1.0], [1.0, 2.0]]),
        source=np.array([0, 1, 1]),
        names=("a" * 200 + ".jsonl", "owner/name@revision:train[:1000]"),
    )
    store = PairStore.of([pair(4000, 3000), pair(3000, 3500), pair(2000, 4000)])
    report = length_report(store, store, marks)
    return replace(report, read=10, dropped={"prompt: found [red]only[/] blanks " * 3: 7}, notes={"a remark": 3})


def test_a_column_for_each_split() -> None:
    text = printed({"train": length_report(STORE), "validation": length_report(STORE, train=STORE)})
    assert "train" in text
    assert "validation" in text
    assert "62.5% (" in text
    assert "pairs seen in training" in text


def test_two_splits_fit_eighty_columns_with_every_number_whole() -> None:
    text = printed({"train": large(), "validation": large()})
    assert max(map(len, text.splitlines())) <= 80
    cells = [cell for line in text.splitlines() for cell in line.split("│")[2:]]
    assert "…" not in "".join(cells)
    assert " -2000 -1850 -500 " in text
    assert "7 (70.0%)" in text
    assert "[red]only[/]" in text, "data is text, not markup"


def test_sides_that_are_not_there_have_no_rows() -> None:
    alone = replace(pair(2, 1), rejected=response(5, 0))
    text = printed({"train": length_report(PairStore.of([alone]))})
    assert "chosen" in text
    assert "rejected" not in text
    assert "longer wins" not in text


def test_prompts_alone_have_no_rows_of_responses() -> None:
    alone = replace(pair(2, 1), chosen=response(4, 0), rejected=response(5, 0))
    report = length_report(PairStore.of([alone]))
    assert [line.split("│")[1].strip() for line in printed({"train": report}).splitlines() if "│" in line] == [
        "pairs",
        "prompt",
    ]
    assert warnings(report, step_size=1) == []


def test_warnings_are_for_what_is_there() -> None:
    assert warnings(length_report(STORE, train=None), step_size=4) == []
    assert warnings(length_report(STORE), step_size=5) == ["4 pairs are used, and an optimizer step takes 5"]
    assert warnings(length_report(STORE, train=STORE)) == [
        "4 pairs are in the training data as well; 4 pairs are used"
    ]
