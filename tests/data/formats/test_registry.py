from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.data.formats.base import RawRow
from lit_align.data.formats.registry import FORMATS, detect, read_row
from lit_align.errors import DataError
from lit_align.types import PreferencePair
from tests.data.examples import pair_row, turns

ASK = "\n\nHuman: Where?\n\nAssistant: Here.\n\nHuman: Where exactly?\n\nAssistant:"
GOOD: dict[str, dict[str, Any]] = {
    "pairs": pair_row(1),
    "hh": {"chosen": ASK + " In the skiff.", "rejected": ASK + " In the sea."},
    "chat": {"chosen": turns("Where?", "Here."), "rejected": turns("Where?", "There.")},
    "ranking": {"prompt": "Where?", "responses": ["Here.", "There."]},
    "unpaired": {"prompt": "Where?", "completion": "Here.", "label": True},
    "prompts": {"prompt": "Where?"},
}
OF_PAIRS = ("pairs", "hh", "chat")
WITH_RESPONSES = tuple(name for name in FORMATS if name != "prompts")


def read(row: dict[str, Any], layout: str | None = None) -> PreferencePair:
    raw = RawRow(row, "rows.jsonl:7")
    return read_row(raw, FORMATS[layout or detect(raw)]).pairs[0]


def refusal(row: dict[str, Any], layout: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read(row, layout)
    text = str(caught.value)
    assert text.startswith("rows.jsonl:7: ")
    assert len(text) < 600
    return text


class TestEveryFormat:
    @pytest.mark.parametrize("name", WITH_RESPONSES)
    def test_its_own_rows_are_detected_and_read(self, name: str) -> None:
        assert detect(RawRow(GOOD[name], "")) == name
        assert read(GOOD[name]).where == "rows.jsonl:7"

    @pytest.mark.parametrize("name", FORMATS)
    def test_other_columns_are_kept(self, name: str) -> None:
        assert read({**GOOD[name], "score": 3, "id": "x"}, name).extra.items() >= {("score", 3), ("id", "x")}

    @pytest.mark.parametrize("side", ["chosen", "rejected"])
    @pytest.mark.parametrize("name", OF_PAIRS)
    @pytest.mark.parametrize(
        ("value", "found"), [(None, "null"), (3, "a number"), (True, "a truth value"), ({}, "an object")]
    )
    def test_a_value_that_is_no_text(self, name: str, side: str, value: Any, found: str) -> None:
        assert f"{side}: found {found}" in refusal({**GOOD[name], side: value}, name)

    @pytest.mark.parametrize("name", OF_PAIRS)
    def test_both_responses_the_same(self, name: str) -> None:
        text = refusal({**GOOD[name], "rejected": GOOD[name]["chosen"]}, name)
        assert "chosen and rejected are the same" in text

    @pytest.mark.parametrize("name", OF_PAIRS)
    def test_a_missing_column_comes_with_a_suggestion(self, name: str) -> None:
        row = {"choosen" if key == "chosen" else key: value for key, value in GOOD[name].items()}
        text = refusal(row, name)
        assert "column 'chosen' is missing; found [" in text
        assert "did you mean 'choosen' to be 'chosen'?" in text

    @pytest.mark.fault("A38", "A38b", "A39")
    @pytest.mark.parametrize(
        "column", ["ref_chosen_logps", "reference_rejected_logps", "prompt_input_ids", "chosen_ids"]
    )
    @pytest.mark.parametrize("name", FORMATS)
    def test_ids_and_log_probs_made_elsewhere_are_refused(self, name: str, column: str) -> None:
        assert f"columns ['{column}'] hold" in refusal({**GOOD[name], column: [1]}, name)

    @pytest.mark.parametrize("name", WITH_RESPONSES)
    @pytest.mark.parametrize("other", FORMATS)
    def test_a_row_of_another_format_is_refused(self, name: str, other: str) -> None:
        if name != other:
            refusal(GOOD[other], name)


class TestPrompts:
    def test_the_responses_of_a_row_are_left(self) -> None:
        pair = read(GOOD["pairs"], "prompts")
        assert pair.prompt == GOOD["pairs"]["prompt"]
        assert (pair.chosen, pair.rejected) == (None, None)

    def test_a_prompt_may_be_messages(self) -> None:
        assert read({"prompt": turns("Where?")}, "prompts").prompt == ({"role": "user", "content": "Where?"},)

    def test_they_are_never_taken_without_being_asked_for(self) -> None:
        assert "'chosen' is missing" in refusal({"prompt": "Where?", "choosen": "Here."})

    @pytest.mark.parametrize(("value", "found"), [("", "found empty"), (3, "found a number"), ([], "an empty list")])
    def test_nothing_there(self, value: Any, found: str) -> None:
        assert found in refusal({"prompt": value}, "prompts")


class TestPairs:
    @pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
    @pytest.mark.parametrize(("value", "found"), [("", "found empty"), (" \n\t\u00a0", "found only blanks")])
    def test_nothing_there(self, column: str, value: str, found: str) -> None:
        assert f"{column}: {found}" in refusal({**GOOD["pairs"], column: value})

    def test_a_list_where_text_was(self) -> None:
        assert "chosen: found a list" in refusal({**GOOD["pairs"], "chosen": ["a"]}, "pairs")

    def test_text_is_kept_as_it_is(self) -> None:
        row = {"prompt": " x ", "chosen": "\n y", "rejected": "z \n"}
        pair = read(row)
        assert (pair.prompt, pair.chosen, pair.rejected) == (" x ", "\n y", "z \n")


class TestHumanAssistant:
    @pytest.mark.fault("A07b")
    def test_responses_that_begin_alike_are_not_cut(self) -> None:
        pair = read(GOOD["hh"])
        assert (pair.prompt, pair.chosen, pair.rejected) == (ASK, " In the skiff.", " In the sea.")

    def test_the_two_prompts_must_agree(self) -> None:
        row = {"chosen": ASK + " a", "rejected": ASK.replace("exactly", "roughly") + " b"}
        text = refusal(row)
        assert "the two dialogues differ before the last response: at character" in text
        assert "'exactly?" in text
        assert "'roughly?" in text

    @pytest.mark.parametrize("chosen", ["In the skiff.", "\n\nAssistant: In the skiff.", "\n\nHuman: Where?"])
    def test_texts_without_turns_need_a_prompt(self, chosen: str) -> None:
        text = refusal({"chosen": chosen, "rejected": chosen + " No."}, "hh")
        assert "chosen: found no" in text
        assert "needs a column 'prompt' (format: pairs)" in text

    def test_a_response_of_blanks(self) -> None:
        assert "rejected: found only blanks" in refusal({"chosen": ASK + " a", "rejected": ASK + " "})

    def test_one_side_that_goes_on_after_the_response(self) -> None:
        row = {"chosen": ASK + " a", "rejected": ASK + " b\n\nHuman: and?\n\nAssistant: c"}
        assert "differ before the last response" in refusal(row)


class TestChat:
    def test_the_prompt_is_what_the_sides_share_before_the_response(self) -> None:
        row = {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "e")}
        pair = read(row)
        assert list(pair.prompt) == turns("a", "b", "c")
        assert pair.chosen == ({"role": "assistant", "content": "d"},)

    @pytest.mark.parametrize("prompt", [turns("a", "b", "c"), turns("c"), "c"])
    def test_a_prompt_beside_whole_conversations_must_be_theirs(self, prompt: Any) -> None:
        row = {"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "b", "c", "e")}
        assert read({**row, "prompt": prompt}) == read(row)
        assert "prompt: differs from the conversation" in refusal({**row, "prompt": turns("other")})

    @pytest.mark.parametrize("prompt", [turns("a"), "a"])
    def test_sides_that_are_the_response_alone_need_a_prompt(self, prompt: Any) -> None:
        row = {"chosen": turns("a", "b")[1:], "rejected": turns("a", "c")[1:]}
        assert list(read({**row, "prompt": prompt}).prompt) == turns("a")
        assert "the response has no prompt" in refusal(row)

    def test_user_turns_that_differ_are_shown(self) -> None:
        row = {"chosen": turns("a", "b", "left", "d"), "rejected": turns("a", "b", "right", "d")}
        text = refusal(row)
        assert "turn 3" in text
        assert "left" in text
        assert "right" in text

    def test_conversations_of_different_length(self) -> None:
        row = {"chosen": turns("a", "b"), "rejected": turns("a", "b", "c", "d")}
        assert "1 turns and 3 turns" in refusal(row)

    @pytest.mark.parametrize(
        ("message", "reason"),
        [
            ({"role": "assistant"}, "chosen[1]: message without 'content'; found ['role']"),
            ({"content": "x"}, "chosen[1]: message without 'role'"),
            ({"role": "assistant", "content": None}, "chosen[1]: found null as 'content'"),
            ({"role": "assistant", "content": [{"type": "text"}]}, "chosen[1]: found {'type': 'text'} in 'content'"),
            ({"role": "</s>", "content": "x"}, "chosen[1]: role '</s>' is unknown"),
            ({"role": "user", "content": "x"}, "chosen: the last message is the user's"),
            ({"role": "assistant", "content": " "}, "chosen: found only blanks"),
            ("x", "chosen[1]: found text; expected a message"),
        ],
    )
    def test_a_bad_message_is_named(self, message: Any, reason: str) -> None:
        row = {"chosen": [*turns("a"), message], "rejected": turns("a", "c")}
        assert reason in refusal(row)

    def test_no_messages(self) -> None:
        assert "chosen: found an empty list" in refusal({**GOOD["chat"], "chosen": []})

    def test_keys_without_a_value_are_left_out(self) -> None:
        row = {side: [{**message, "name": None} for message in GOOD["chat"][side]] for side in ("chosen", "rejected")}
        assert read(row) == read(GOOD["chat"])


VALUES = st.none() | st.text(max_size=8) | st.integers() | st.lists(st.none() | st.dictionaries(st.text(), st.text()))


@st.composite
def spoilt_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A good row with a part of it replaced or taken away."""
    row = copy.deepcopy(GOOD[draw(st.sampled_from(sorted(GOOD)))])
    column = draw(st.sampled_from(sorted(row)))
    target, key = row, column
    if isinstance(row[column], list) and isinstance(row[column][0], dict) and draw(st.booleans()):
        target, key = draw(st.sampled_from(row[column])), draw(st.sampled_from(["role", "content"]))
    if draw(st.booleans()):
        del target[key]
    else:
        target[key] = draw(VALUES)
    return row


@settings(deadline=None, max_examples=200)
@given(row=spoilt_rows(), layout=st.sampled_from([*FORMATS, None]))
def test_a_spoilt_row_is_a_pair_or_a_data_error(row: dict[str, Any], layout: str | None) -> None:
    before = copy.deepcopy(row)
    outcome: PreferencePair | DataError
    try:
        outcome = read(row, layout)
    except DataError as error:
        outcome = error
    assert outcome.where == "rows.jsonl:7"
    assert isinstance(outcome, DataError) or layout == "prompts" or outcome.chosen != outcome.rejected
    assert row == before
