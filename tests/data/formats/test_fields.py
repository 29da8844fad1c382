from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.data.formats import fields
from lit_align.data.formats.base import RawRow
from lit_align.data.formats.registry import FORMATS, read_row
from lit_align.errors import DataError
from lit_align.types import PreferencePair
from tests.data.examples import outcome, pair_row, turns

WHERE = "rows.jsonl:7"


def pair(**more: Any) -> PreferencePair:
    return read_row(RawRow({**pair_row(1), **more}, WHERE), FORMATS["pairs"]).pairs[0]


class TestNumbersOfAPair:
    def test_a_row_without_them(self) -> None:
        found = pair()
        assert (found.weight, found.margin, found.preference_probability, found.scores) == (1.0, None, None, None)

    def test_a_row_with_them(self) -> None:
        found = pair(weight="0.5", margin=0, preference_probability=0.75, score_chosen=3, score_rejected=None)
        assert (found.weight, found.margin, found.preference_probability) == (0.5, 0.0, 0.75)
        assert found.scores is not None
        assert found.scores[0] == 3
        assert math.isnan(found.scores[1])

    @pytest.mark.parametrize("names", fields.SCORE_COLUMNS)
    def test_both_names_of_scores(self, names: tuple[str, str]) -> None:
        assert pair(**dict(zip(names, (1, 2), strict=True))).scores == (1.0, 2.0)

    def test_a_margin_that_is_null_is_not_there(self) -> None:
        assert pair(margin=None, preference_probability="").margin is None

    @pytest.mark.parametrize(
        ("column", "value", "expected"),
        [
            ("weight", 0, "found 0; expected more than 0: leave the row out instead"),
            ("weight", -1, "found -1; expected a finite number of 0 or more"),
            ("weight", None, "found None; expected a finite number"),
            ("weight", math.nan, "found nan"),
            ("weight", math.inf, "found inf"),
            ("weight", True, "found True"),
            ("weight", 10**400, "found 1000000"),
            ("margin", -0.1, "found -0.1; expected a finite number of 0 or more"),
            ("margin", [1], "found [1]"),
            ("preference_probability", 1.01, "found 1.01; expected a finite number from 0 to 1"),
            ("preference_probability", "much", "found 'much'"),
        ],
    )
    @pytest.mark.fault("F07", "F08")
    def test_what_is_out_of_range_is_named(self, column: str, value: Any, expected: str) -> None:
        with pytest.raises(DataError) as caught:
            pair(**{column: value})
        assert str(caught.value).startswith(f"{WHERE}: {column}: {expected}")

    @pytest.mark.slow
    @given(value=st.floats() | st.integers() | st.text(max_size=9) | st.none() | st.booleans())
    def test_whatever_the_weight_it_is_positive_or_a_data_error(self, value: Any) -> None:
        found = outcome(lambda: pair(weight=value))
        assert found.column == "weight" if isinstance(found, DataError) else 0 < found.weight < math.inf


class TestTools:
    TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}

    def chat(self, **more: Any) -> PreferencePair:
        row = {"chosen": turns("a", "b"), "rejected": turns("a", "c"), **more}
        return read_row(RawRow(row, WHERE), FORMATS["chat"]).pairs[0]

    def test_tools_of_a_conversation(self) -> None:
        found = self.chat(tools=[self.TOOL])
        assert found.tools == (self.TOOL,)
        assert "tools" not in found.extra
        assert self.chat(tools=None).tools == ()

    @pytest.mark.parametrize("tools", ["add", {"add": 1}, ["add"], [None]])
    def test_something_else(self, tools: Any) -> None:
        with pytest.raises(DataError, match="tools: found .*; expected a list of JSON schemas"):
            self.chat(tools=tools)

    def test_tools_of_plain_text(self) -> None:
        with pytest.raises(DataError, match="tools: tools are for conversations"):
            pair(tools=[self.TOOL])

    def test_a_message_that_only_calls_a_tool_has_no_text(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
        answer = {"role": "tool", "content": "4"}
        asked = [{"role": "system", "content": "Be brief."}, *turns("2 + 2?"), call, answer]
        row = {"prompt": asked, "chosen": turns("", "4")[1:], "rejected": turns("", "5")[1:], "tools": [self.TOOL]}
        found = read_row(RawRow(row, WHERE), FORMATS["chat"]).pairs[0]
        assert [message["role"] for message in found.prompt if isinstance(message, dict)] == [
            *("system", "user", "assistant", "tool")
        ]
        assert found.prompt[2]["content"] is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("False", False),
        ("1", True),
        (" 0 ", False),
    ],
)
def test_boolean(value: Any, found: bool) -> None:
    assert fields.boolean(RawRow({"label": value}, WHERE), "label") is found


@pytest.mark.parametrize("value", [None, 2, "yes", "", [], 0.5])
def test_not_a_boolean(value: Any) -> None:
    with pytest.raises(DataError, match="label: found .*; expected true or false"):
        fields.boolean(RawRow({"label": value}, WHERE), "label")


class TestFormsOfMessages:
    """Several ways of writing the same messages."""

    def chat(self, *answer: dict[str, Any], null_filled: bool = False, **more: Any) -> PreferencePair:
        row = {"prompt": turns("a"), "chosen": list(answer), "rejected": turns("", "no")[1:], **more}
        return read_row(RawRow(row, WHERE, null_filled), FORMATS["chat"]).pairs[0]

    def test_content_as_parts_of_text(self) -> None:
        parts = [{"type": "text", "text": "Here"}, {"type": "text", "text": " it is."}]
        expected = self.chat({"role": "assistant", "content": "Here it is."})
        assert self.chat({"role": "assistant", "content": parts}) == expected
        filled = [{**part, "image": None} for part in parts]
        assert self.chat({"role": "assistant", "content": filled}, null_filled=True) == expected

    def test_a_part_that_is_no_text(self) -> None:
        with pytest.raises(
            DataError, match=r"chosen\[0\]: found .*image.* in 'content'; expected parts of text alone"
        ):
            self.chat({"role": "assistant", "content": [{"type": "image", "image": "x.png"}]})

    @pytest.mark.parametrize("arguments", ['{"where": "sea"}', {"where": "sea"}])
    def test_arguments_are_objects(self, arguments: Any) -> None:
        call = {"type": "function", "function": {"name": "find", "arguments": arguments}}
        pair = self.chat({"role": "assistant", "content": None, "tool_calls": [call]})
        assert pair.chosen[0]["tool_calls"][0]["function"]["arguments"] == {"where": "sea"}  # type: ignore[index]
        assert pair.chosen[0]["content"] is None  # type: ignore[index]

    @pytest.mark.parametrize("arguments", ["sea", "[1]", "{"])
    def test_arguments_that_are_no_object_stay(self, arguments: str) -> None:
        call = {"function": {"name": "find", "arguments": arguments}}
        pair = self.chat({"role": "assistant", "content": "x", "tool_calls": [call]})
        assert pair.chosen[0]["tool_calls"] == [call]  # type: ignore[index]

    @pytest.mark.parametrize("form", [json.dumps([TestTools.TOOL]), [json.dumps(TestTools.TOOL)], [TestTools.TOOL]])
    def test_tools_as_json_text(self, form: Any) -> None:
        assert self.chat({"role": "assistant", "content": "x"}, tools=form).tools == (TestTools.TOOL,)

    @pytest.mark.parametrize(
        ("null_filled", "expected"), [(True, {"where": "sea"}), (False, {"where": "sea", "deep": None})]
    )
    def test_null_is_dropped_at_every_depth_where_arrow_fills_it_in(self, null_filled: bool, expected: Any) -> None:
        """In JSON it was written by somebody, and stays."""
        arguments = {"where": "sea", "deep": None}
        call = {"function": {"name": "find", "arguments": arguments}}
        tool = {"function": {"name": "find", "parameters": arguments}}
        message = {"role": "assistant", "content": "x", "tool_calls": [call], "name": None}
        pair = self.chat(message, null_filled=null_filled, tools=[tool])
        assert pair.chosen[0]["tool_calls"][0]["function"]["arguments"] == expected  # type: ignore[index]
        assert pair.tools[0]["function"]["parameters"] == expected
        assert "name" not in pair.chosen[0]  # type: ignore[operator]


@pytest.mark.parametrize("label", [True, 1, 1.0, "1", "1.0", "true", " True "])
def test_labels(label: Any) -> None:
    row = {"prompt": "a", "completion": "b", "label": label}
    assert read_row(RawRow(row, WHERE), FORMATS["unpaired"]).pairs[0].chosen == "b"


@pytest.mark.parametrize("label", [False, 0, 0.0, "0", "0.0", "false"])
def test_labels_of_the_other_side(label: Any) -> None:
    row = {"prompt": "a", "completion": "b", "label": label}
    assert read_row(RawRow(row, WHERE), FORMATS["unpaired"]).pairs[0].rejected == "b"


@pytest.mark.parametrize("label", [0.5, "yes", None, 2])
def test_what_is_no_label(label: Any) -> None:
    with pytest.raises(DataError, match="label: found .*; expected true or false"):
        read_row(RawRow({"prompt": "a", "completion": "b", "label": label}, WHERE), FORMATS["unpaired"])
