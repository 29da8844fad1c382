from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.formats.base import RawRow
from lit_align.data.formats.columns import Columns, likely_name
from lit_align.data.formats.registry import FORMATS, read_row
from lit_align.errors import DataError
from tests.data.examples import outcome

ROW = {
    "question": "Where?",
    "info": {"post": "Here.", "title": None},
    "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 2}],
    "a.b": "dotted",
    "margin": 3,
}


def renamed(paths: dict[str, Any]) -> dict[str, Any]:
    return dict(Columns(paths)(RawRow(ROW, "rows.jsonl:7")).columns)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("question", "Where?"),
        ("info.post", "Here."),
        ("info.title", None),
        ("answers.1.text", "b"),
        ("answers.*.text", ["a", "b"]),
        ("a.b", "dotted"),
        (["question", "info.post"], ["Where?", "Here."]),
        ("POST: {info.post}\nQ: {question}", "POST: Here.\nQ: Where?"),
    ],
)
def test_a_path_leads_to_a_value(path: Any, value: Any) -> None:
    assert renamed({"prompt": path})["prompt"] == value


def test_a_renamed_column_has_its_old_name_no_more_and_the_others_stay() -> None:
    found = renamed({"prompt": "question", "margin": None})
    assert found == {"prompt": "Where?", **{name: ROW[name] for name in ("info", "answers", "a.b")}}


def test_a_column_that_is_left_out_need_not_be_there() -> None:
    assert renamed({"weight": None}) == ROW


def test_two_columns_may_change_places() -> None:
    row = RawRow({"chosen": "bad", "rejected": "good"}, "")
    swapped = Columns({"chosen": "rejected", "rejected": "chosen"})(row)
    assert swapped.columns == {"chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (
            "qestion",
            "columns.prompt: 'qestion' does not exist; found ['question', 'info', 'answers', 'a.b', 'margin']",
        ),
        ("qestion", "did you mean 'question'?"),
        ("info.pst", "'pst' of 'info.pst' does not exist; found ['post', 'title']; did you mean 'post'?"),
        ("info.post.text", "'text' of 'info.post.text' does not exist; found text"),
        ("answers.5.text", "'5' of 'answers.5.text' does not exist; found a list"),
        ("answers.text", "'text' of 'answers.text' does not exist; found a list"),
        ("question.*", "'*' of 'question.*' does not exist; found text"),
        ("T: {info.title}", "prompt: found null in 'info.title'; expected text"),
        (["question", "nothing"], "columns.prompt[1]: 'nothing' does not exist"),
    ],
)
def test_a_path_that_leads_nowhere(path: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        renamed({"prompt": path})
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert reason in str(caught.value)


def test_a_name_that_no_format_knows() -> None:
    with pytest.raises(ValueError, match=r"'promt' is not a column of any format; did you mean 'prompt'\?"):
        Columns({"promt": "question"})


VALUES = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.lists(st.sampled_from(["a", "b", "*", "0", "", "{", "}", "{a}"]), max_size=4).map(".".join) | st.text()


@pytest.mark.slow
@given(row=st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES), path=PATHS | st.lists(PATHS, max_size=2))
def test_whatever_row_and_path_it_is_a_row_or_a_data_error(row: dict[str, Any], path: Any) -> None:
    found = outcome(lambda: Columns({"prompt": path})(RawRow(row, "f:1")))
    assert found.where == "f:1"
    assert isinstance(found, DataError) or "prompt" in found.columns


SIDES = [
    (("win", "lose"), {"chosen": "win", "rejected": "lose"}),
    (("lose", "win"), {"chosen": "win", "rejected": "lose"}),
    (("loser",), {"chosen": None, "rejected": "loser"}),
    (("loose", "inferior"), {"chosen": None, "rejected": "loose"}),
    (("response_bad", "response_good"), {"chosen": "response_good", "rejected": "response_bad"}),
    (("dispreferred", "preferred"), {"chosen": "preferred", "rejected": "dispreferred"}),
    (("choosen", "rejcted"), {"chosen": "choosen", "rejected": "rejcted"}),
    (("rejected",), {"chosen": None}),
    (("chosen",), {"rejected": None}),
    (("losingText", "winningText"), {"chosen": "winningText", "rejected": "losingText"}),
]


@pytest.mark.parametrize(("present", "expected"), SIDES)
def test_no_column_of_the_losing_side_is_taken_for_one_of_the_winning_side(
    present: tuple[str, ...], expected: dict[str, str | None]
) -> None:
    """Whoever follows such a hint trains the reverse."""
    for name, meant in expected.items():
        assert likely_name(name, ["prompt", *present]) == meant


def test_a_missing_column_is_answered_with_what_to_write() -> None:
    row = RawRow({"prompt": "a", "win": "b", "lose": "c"}, "rows.jsonl:7")
    with pytest.raises(DataError, match=r"data\.columns: \{chosen: 'win', rejected: 'lose'\}"):
        read_row(row, FORMATS["pairs"])
    renamed = Columns({"chosen": "win", "rejected": "lose"})(row)
    assert read_row(renamed, FORMATS["pairs"]).pairs[0].chosen == "b"


def test_a_column_that_is_refused_is_answered_with_what_to_write() -> None:
    row = RawRow({"prompt": "a", "chosen": "b", "rejected": "c", "ref_chosen_logps": -1.0}, "rows.jsonl:7")
    with pytest.raises(DataError, match=r"leave them out with data\.columns: \{ref_chosen_logps: null\}"):
        read_row(row, FORMATS["pairs"])
    assert read_row(Columns({"ref_chosen_logps": None})(row), FORMATS["pairs"]).pairs
