"""Conversations of which all the assistant's turns are scored: where the shared prompt ends."""

from __future__ import annotations

from typing import Any

import pytest

from lit_align.data.formats.base import RawRow
from lit_align.data.formats.pairs import Chat
from lit_align.errors import DataError
from tests.data.examples import turns


def split(**columns: Any) -> tuple[list[str], list[str], list[str]]:
    pair = Chat("all_turns").pair(RawRow(columns, "rows.jsonl:7"))
    said = [[message["content"] for message in part] for part in (pair.prompt, pair.chosen or (), pair.rejected or ())]  # type: ignore[union-attr]
    return said[0], said[1], said[2]


def test_the_prompt_ends_where_the_assistants_begin_to_differ() -> None:
    found = split(chosen=turns("a", "b", "c", "d"), rejected=turns("a", "b", "c", "x"))
    assert found == (["a", "b", "c"], ["d"], ["x"])
    found = split(chosen=turns("a", "b", "c", "d"), rejected=turns("a", "x"))
    assert found == (["a"], ["b", "c", "d"], ["x"])


def test_users_that_differ_put_the_turn_before_them_into_the_response() -> None:
    found = split(chosen=turns("a", "b", "c", "d"), rejected=turns("a", "b", "y", "z"))
    assert found == (["a"], ["b", "c", "d"], ["b", "y", "z"])


def test_a_prompt_of_its_own_is_the_prompt() -> None:
    said, other = turns("a", "b", "c", "d")[1:], turns("a", "b", "c", "x")[1:]
    assert split(prompt=turns("a")[:1], chosen=said, rejected=other) == (["a"], ["b", "c", "d"], ["b", "c", "x"])
    whole = turns("a", "b", "c", "d")
    assert split(prompt="a", chosen=whole, rejected=other) == (["a"], ["b", "c", "d"], ["b", "c", "x"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": turns("a", "b", "c"), "rejected": turns("a", "x")}, "chosen: the last message is the user's"),
        ({"chosen": turns("a", "b"), "rejected": turns("y", "x")}, "share no turn .*: turn 1"),
        (
            {"prompt": "q", "chosen": turns("a", "b"), "rejected": turns("q", "x")},
            "prompt: differs from the conversation",
        ),
    ],
)
def test_what_is_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"rows.jsonl:7: .*{message}|rows.jsonl:7: {message}"):
        split(**columns)
