"""The table of formats, and reading a row by one of them with every check that needs no tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from lit_align.data.formats import fields as cells
from lit_align.data.formats.base import Format, Reading
from lit_align.data.formats.columns import suggestion
from lit_align.data.formats.conversations import Score
from lit_align.data.formats.pairs import Chat, HumanAssistant, Pairs
from lit_align.data.formats.rankings import Prompts, Ranking, Unpaired
from lit_align.data.formats.rows import RawRow
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair

FormatName: TypeAlias = Literal["auto", "pairs", "chat", "hh", "ranking", "unpaired", "prompts"]
_SIDES = ("prompt", "chosen", "rejected")
_MADE_ELSEWHERE = re.compile(
    r"(prompt|chosen|rejected)_(input_ids|ids|token_ids|labels|attention_mask)"
    r"|ref(erence)?_(chosen|rejected)_log(p|ps|probs?)"
)


def formats(ranking: Ranking = Ranking(), score: Score = "last_turn") -> Mapping[str, Format]:
    """Name → format.

    Args:
        ranking: how pairs are made of rankings.
        score: which of the assistant's turns in a conversation are its response.
    """
    others = {"ranking": ranking, "unpaired": Unpaired(), "prompts": Prompts()}
    return {"pairs": Pairs(), "chat": Chat(score), "hh": HumanAssistant(), **others}


FORMATS = formats()


def detect(row: RawRow) -> str:
    """Name of the format that the columns of a file's first row speak for.

    >>> detect(RawRow({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, "sums.jsonl:1"))
    'pairs'
    """
    if "chosen" not in row.columns:
        for name in ("ranking", "unpaired"):
            if all(column in row.columns for column in FORMATS[name].columns):
                return name
    if any(isinstance(row.columns.get(name), list) for name in _SIDES):
        return "chat"
    return "pairs" if "prompt" in row.columns else "hh"


def read_row(row: RawRow, layout: Format) -> Reading:
    """The pairs of a row, checked.

    Args:
        row: the row, under the names that formats know.
        layout: the format of its file.

    Raises:
        DataError: the row cannot be used.
    """
    for name in layout.columns:
        if name not in row.columns:
            raise DataError(row.where, _missing(name, list(row.columns)))
    foreign = [name for name in row.columns if _MADE_ELSEWHERE.fullmatch(name)]
    if foreign:
        raise DataError(
            row.where,
            f"columns {shown(foreign)} hold token ids or log-probabilities made elsewhere; expected text alone, "
            "because nothing here can check them against it",
        )
    reading = layout(row)
    return replace(reading, pairs=tuple(_checked(pair, row) for pair in reading.pairs))


def _checked(pair: PreferencePair, row: RawRow) -> PreferencePair:
    """The pair with the numbers that its row has for it."""
    for column in _SIDES:
        cells.check_filled(row.where, column, getattr(pair, column))
    if pair.chosen is not None and pair.chosen == pair.rejected:
        raise DataError(row.where, f"chosen and rejected are the same: {shown(pair.chosen, 60)}")
    if row.columns.get("tools") and isinstance(pair.prompt, str):
        raise DataError(row.where, "tools are for conversations; expected messages (format: chat)", "tools")
    return replace(
        pair,
        weight=cells.weight(row),
        margin=cells.optional_number(row, "margin", 0),
        preference_probability=cells.optional_number(row, "preference_probability", 0, 1),
        scores=pair.scores or cells.scores(row),
    )


def _missing(name: str, found: list[str]) -> str:
    hint = suggestion(name, found).replace("?", f" to be {name!r}?")
    return f"column {name!r} is missing; found {shown(found)}{hint}"
