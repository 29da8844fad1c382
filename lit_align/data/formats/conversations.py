"""Splitting conversations into the prompt and the assistant's response."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

from lit_align.data.formats import fields
from lit_align.data.formats.base import RawRow
from lit_align.data.formats.fields import Messages
from lit_align.errors import DataError, kind, shown
from lit_align.types import Text

Score: TypeAlias = Literal["last_turn", "all_turns"]
"""Which of the assistant's turns in a response are scored."""


def split_response(row: RawRow, column: str, before: Messages, messages: Messages) -> tuple[Messages, Messages]:
    """Split a conversation into the prompt and the response, which is the trailing run of assistant turns.

    A ``prompt`` that ends in an assistant turn is continued by a response that is given alone.

    Args:
        row: the row, for error messages.
        column: the column of the conversation.
        before: the messages of ``prompt``, if the row has that column.
        messages: the response alone, or the whole conversation.

    Raises:
        DataError: the last message is not the assistant's, or nothing precedes the response.
    """
    whole = _conversation(row, column, before, messages)
    if before and before[-1]["role"] == "assistant" and messages[0]["role"] == "assistant":
        return before, messages
    end = len(whole)
    while end and whole[end - 1]["role"] == "assistant":
        end -= 1
    if end == 0:
        raise DataError(row.where, "the response has no prompt: no message stands before it", column)
    return whole[:end], whole[end:]


def _conversation(row: RawRow, column: str, before: Messages, messages: Messages) -> Messages:
    """Return the whole conversation, which must end with an assistant turn."""
    whole = before + messages if messages[0]["role"] == "assistant" else messages
    if whole[-1]["role"] != "assistant":
        raise DataError(row.where, f"the last message is the {whole[-1]['role']}'s; expected the assistant's", column)
    return whole


class SharedConversation(NamedTuple):
    """Two conversations that begin alike. Each continuation begins and ends with an assistant turn."""

    prompt: Messages
    chosen: Messages
    rejected: Messages


def split_shared(row: RawRow, before: Messages, chosen: Messages, rejected: Messages) -> SharedConversation:
    """Split two conversations after ``prompt`` or, without that column, after the leading turns that they share.

    Args:
        row: the row, for error messages.
        before: the messages of ``prompt``, if the row has that column.
        chosen: the preferred response alone, or its whole conversation.
        rejected: as ``chosen``, for the other response.

    Raises:
        DataError: a side does not end with an assistant turn, or does not continue the prompt with one.
    """
    first = _conversation(row, "chosen", before, chosen)
    second = _conversation(row, "rejected", before, rejected)
    sides = (("chosen", first), ("rejected", second))
    for _, whole in sides:
        if whole[: len(before)] != before:
            raise DataError(row.where, f"differs from the conversation: {first_difference(before, whole)}", "prompt")
    end = len(before) or _shared_turns(first, second)
    if not end:
        reason = "the two conversations share no turn in front of an assistant's"
        raise DataError(row.where, f"{reason}: {first_difference(first, second)}")
    for column, whole in sides:
        if len(whole) == end or whole[end]["role"] != "assistant":
            raise DataError(row.where, "the turn after the prompt is not the assistant's", column)
    return SharedConversation(first[:end], first[end:], second[end:])


def _shared_turns(first: Messages, second: Messages) -> int:
    """Count the leading turns that are the same, up to one that is followed by an assistant turn on both sides."""
    pairs = list(zip(first, second, strict=False))
    same = next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    answered = (index for index in range(same, 0, -1) if _both_answer(first, second, index))
    return next(answered, 0)


def _both_answer(first: Messages, second: Messages, index: int) -> bool:
    roles = [first[index]["role"], second[index]["role"], first[index - 1]["role"]]
    return roles[:2] == ["assistant", "assistant"] and roles[2] != "assistant"


def check_prompt(row: RawRow, before: Messages, prompt: Messages) -> None:
    """Raise a ``DataError`` unless the prompt of the conversation ends with the messages of ``prompt``."""
    if before and prompt[-len(before) :] != before:
        raise DataError(row.where, f"differs from the conversation: {first_difference(before, prompt)}", "prompt")


def split_responses(row: RawRow, column: str, values: list[Any]) -> tuple[Text, list[Text]]:
    """Return the prompt of a row and several responses to it: all texts, or all messages if any is a conversation.

    Args:
        row: a row with a ``prompt``.
        column: the column of the responses.
        values: the responses.

    Raises:
        DataError: a response is neither text nor messages, or the prompts differ.
    """
    if isinstance(row.columns["prompt"], str) and all(isinstance(value, str) for value in values):
        return fields.text(row, "prompt"), list(values)
    before = fields.prompt_messages(row)
    split = [_split_value(row, f"{column}[{index}]", before, value) for index, value in enumerate(values)]
    prompt = split[0][0]
    for other, _ in split:
        if other != prompt:
            reason = f"the conversations differ before the response: {first_difference(prompt, other)}"
            raise DataError(row.where, reason)
    check_prompt(row, before, prompt)
    return prompt, [response for _, response in split]


def _split_value(row: RawRow, column: str, before: Messages, value: Any) -> tuple[Messages, Messages]:
    if not isinstance(value, str | list):
        raise DataError(row.where, f"found {kind(value)}; expected text or messages", column)
    is_text = isinstance(value, str)
    response = ({"role": "assistant", "content": value},) if is_text else fields.parse_messages(row, column, value)
    return split_response(row, column, before, response)


def first_difference(first: Messages, second: Messages) -> str:
    """Describe the first turn in which two conversations differ."""
    pairs = enumerate(zip(first, second, strict=False), start=1)
    turn = next((number for number, (a, b) in pairs if a != b), 0)
    if not turn:
        return f"{len(first)} turns and {len(second)} turns"
    return f"turn {turn}: {shown(dict(first[turn - 1]), 90)} and {shown(dict(second[turn - 1]), 90)}"
