"""A conversation is split into what came before the response, and the response: the assistant's turns at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lit_align.data.formats import fields as cells
from lit_align.data.formats.fields import Messages
from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, kind, shown
from lit_align.types import Text

Score: TypeAlias = Literal["last_turn", "all_turns"]
"""Which of the assistant's turns in a response are scored."""


def split(row: RawRow, column: str, before: Messages, said: Messages) -> tuple[Messages, Messages]:
    """The messages before the response, and the response: the assistant's turns at the end.

    Args:
        row: where it stands, for messages.
        column: the column it stands in.
        before: the messages of ``prompt``, if the row has them.
        said: the response alone, or the whole conversation.
    """
    whole = before + said if said[0]["role"] == "assistant" else said
    end = len(whole)
    while end and whole[end - 1]["role"] == "assistant":
        end -= 1
    if end == len(whole):
        raise DataError(row.where, f"the last message is the {whole[-1]['role']}'s; expected the assistant's", column)
    if end == 0:
        raise DataError(row.where, "the response has no prompt: no message stands before it", column)
    return whole[:end], whole[end:]


@dataclass(frozen=True)
class Shared:
    """Two conversations: what both begin with, and how each goes on, an assistant's turn first and last."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


def split_shared(row: RawRow, before: Messages, chosen: Messages, rejected: Messages) -> Shared:
    """Two conversations behind the messages of ``prompt`` or, without these, behind their shared leading turns.

    Args:
        row: where they stand, for messages.
        before: the messages of ``prompt``, if the row has them.
        chosen: the preferred side: the response alone, or the whole conversation.
        rejected: the other one.

    Raises:
        DataError: a side does not end in an assistant's turn, or not both have one behind the prompt.
    """
    first, second = (before + said if said[0]["role"] == "assistant" else said for said in (chosen, rejected))
    for column, whole in (("chosen", first), ("rejected", second)):
        if whole[-1]["role"] != "assistant":
            raise DataError(
                row.where, f"the last message is the {whole[-1]['role']}'s; expected the assistant's", column
            )
        if whole[: len(before)] != before:
            raise DataError(row.where, f"not the conversation's: {first_difference(before, whole)}", "prompt")
    end = len(before) or _shared_turns(first, second)
    if not end:
        reason = "the two conversations share no turn in front of an assistant's"
        raise DataError(row.where, f"{reason}: {first_difference(first, second)}")
    for column, whole in (("chosen", first), ("rejected", second)):
        if len(whole) == end or whole[end]["role"] != "assistant":
            raise DataError(row.where, "the turn behind the prompt is not the assistant's", column)
    return Shared(first[:end], first[end:], second[end:])


def _shared_turns(first: Messages, second: Messages) -> int:
    """How many leading turns are the same, up to one that both assistants answer."""
    pairs = list(zip(first, second, strict=False))
    same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    answered = (place for place in range(same, 0, -1) if _both_answer(first, second, place))
    return next(answered, 0)


def _both_answer(first: Messages, second: Messages, place: int) -> bool:
    turns = [first[place]["role"], second[place]["role"], first[place - 1]["role"]]
    return turns[:2] == ["assistant", "assistant"] and turns[2] != "assistant"


def check_prompt(row: RawRow, before: Messages, prompt: Messages) -> None:
    """Raise if the messages of ``prompt`` are not those before the response."""
    if before and prompt[-len(before) :] != before:
        raise DataError(row.where, f"not the conversation's: {first_difference(before, prompt)}", "prompt")


def answers(row: RawRow, column: str, values: list[Any]) -> tuple[Text, list[Text]]:
    """The prompt of a row and several responses to it, as texts, or as messages if any of them is.

    Args:
        row: the row, with a ``prompt``.
        column: where the responses stand.
        values: the responses.

    Raises:
        DataError: a response is neither text nor messages, or one has another prompt.
    """
    if isinstance(row.columns["prompt"], str) and all(isinstance(value, str) for value in values):
        return cells.text(row, "prompt"), list(values)
    before = cells.asked(row)
    parts = [_answer(row, f"{column}[{place}]", before, value) for place, value in enumerate(values)]
    prompt = parts[0][0]
    for other, _ in parts:
        if other != prompt:
            reason = f"the conversations differ before the response: {first_difference(prompt, other)}"
            raise DataError(row.where, reason)
    check_prompt(row, before, prompt)
    return prompt, [response for _, response in parts]


def _answer(row: RawRow, place: str, before: Messages, value: Any) -> tuple[Messages, Messages]:
    if not isinstance(value, str | list):
        raise DataError(row.where, f"found {kind(value)}; expected text or messages", place)
    told = isinstance(value, str)
    said = ({"role": "assistant", "content": value},) if told else cells.conversation(row, place, value)
    return split(row, place, before, said)


def first_difference(first: Messages, second: Messages) -> str:
    """The first turn in which two conversations differ."""
    pairs = enumerate(zip(first, second, strict=False), start=1)
    place = next((number for number, (a, b) in pairs if a != b), 0)
    if not place:
        return f"{len(first)} turns and {len(second)} turns"
    return f"turn {place}: {shown(dict(first[place - 1]), 90)} and {shown(dict(second[place - 1]), 90)}"
