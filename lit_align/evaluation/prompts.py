"""The held-out prompts of an evaluation."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from lit_align.data.formats.registry import FormatName
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.sources.base import read_source
from lit_align.errors import DataError
from lit_align.types import PreferencePair, Text

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt to respond to.

    Args:
        index: position of its row among the rows of the source, from 0.
        pair: its row, without responses.
    """

    index: int
    pair: PreferencePair

    @property
    def text(self) -> str:
        """The prompt as judges see it, the same for every model."""
        return plain_text(self.pair.prompt)


def plain_text(text: Text) -> str:
    r"""Return a prompt as text: a single user message as it is, several turns with their roles.

    >>> plain_text(({"role": "user", "content": "2 + 2?"},))
    '2 + 2?'
    >>> plain_text(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}))
    'system: Be brief.\n\nuser: 2 + 2?'
    """
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0].get("content") or "")
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in text)


def read_prompts(
    source: str, format_name: FormatName = "auto", limit: int | None = None, chat: bool = False
) -> list[EvaluationPrompt]:
    """Read the distinct prompts of a source: files, patterns, the hub, as for ``data.train``.

    Args:
        source: preference pairs, rankings, or prompts alone; responses in it are not used.
        format_name: of the rows; ``auto`` takes the column ``prompt`` if there is one.
        limit: most prompts, which are then evenly spaced; None for all.
        chat: make a user message of a prompt that is plain text.

    Raises:
        FileNotFoundError: the source does not exist.
        DataError: a row cannot be used, or there is none.
    """
    seen: set[str] = set()
    prompts: list[EvaluationPrompt] = []
    for index, row in enumerate(SplitReader.of(source, _format_of(source, format_name))):
        if isinstance(row, DataError):
            raise row
        for pair in row.pairs[:1]:
            key = json.dumps(pair.prompt, sort_keys=True, default=str)
            if key not in seen:
                seen.add(key)
                prompts.append(EvaluationPrompt(index, _prompt_alone(pair, chat)))
    if not prompts:
        raise DataError(source, "no prompts")
    return evenly_spaced(prompts, limit)


def evenly_spaced(rows: list[_Row], limit: int | None) -> list[_Row]:
    """Return at most so many rows, evenly spaced; None for all.

    >>> evenly_spaced([0, 1, 2, 3, 4], 2)
    [0, 2]
    """
    if limit is None or limit >= len(rows):
        return rows
    return [rows[number * len(rows) // limit] for number in range(limit)]


def in_messages(pair: PreferencePair) -> PreferencePair:
    """Return a pair whose plain texts are messages: of the user, and of the assistant."""

    def turn(text: Text | None, role: str) -> Any:
        return ({"role": role, "content": text},) if isinstance(text, str) else text

    sides = {side: turn(getattr(pair, side), "assistant") for side in ("chosen", "rejected")}
    return replace(pair, prompt=turn(pair.prompt, "user"), **sides)


def _format_of(source: str, format_name: FormatName) -> FormatName:
    if format_name != "auto":
        return format_name
    first = next(iter(read_source(source)), None)
    has_prompt = first is not None and not isinstance(first, DataError) and "prompt" in first.columns
    return "prompts" if has_prompt else "auto"


def _prompt_alone(pair: PreferencePair, chat: bool) -> PreferencePair:
    alone = replace(pair, chosen=None, rejected=None, scores=None)
    return in_messages(alone) if chat else alone
