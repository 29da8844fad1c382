"""The formats by name, their detection, and the parsing of a row with every check that needs no tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, TypeAlias

from lit_align.data.formats import fields
from lit_align.data.formats.base import Format, ParsedRow, RawRow
from lit_align.data.formats.columns import likely_name
from lit_align.data.formats.conversations import Score
from lit_align.data.formats.pairs import Chat, HumanAssistant, Pairs
from lit_align.data.formats.rankings import Prompts, Ranking, Unpaired
from lit_align.errors import DataError, shown
from lit_align.types import PreferencePair

FormatName: TypeAlias = Literal["auto", "pairs", "chat", "hh", "ranking", "unpaired", "prompts"]
_SIDES = ("prompt", "chosen", "rejected")
_MODEL_COLUMNS = re.compile(
    r"(prompt|chosen|rejected)_(input_ids|ids|token_ids|labels|attention_mask)"
    r"|ref(erence)?_(chosen|rejected)_log(p|ps|probs?)"
)


def formats(ranking: Ranking = Ranking(), score: Score = "last_turn") -> Mapping[str, Format]:
    """Return the formats by name."""
    others = {"ranking": ranking, "unpaired": Unpaired(), "prompts": Prompts()}
    return {"pairs": Pairs(), "chat": Chat(score), "hh": HumanAssistant(), **others}


FORMATS = formats()
"""The format of each name that ``data.format`` may have."""


def detect(row: RawRow) -> str:
    """Return the name of the format that the columns of a file's first row suggest.

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


def read_row(row: RawRow, row_format: Format) -> ParsedRow:
    """Parse and check the pairs of a row.

    Raises:
        DataError: the row cannot be used.
    """
    missing = [name for name in row_format.columns if name not in row.columns]
    if missing:
        reason = f"column {missing[0]!r} is missing; found {shown(list(row.columns))}"
        raise DataError(row.where, f"{reason}{_remedy(missing, row_format, row)}")
    foreign = [name for name in row.columns if _MODEL_COLUMNS.fullmatch(name)]
    if foreign:
        remedy = ", ".join(f"{name}: null" for name in foreign)
        raise DataError(
            row.where,
            f"columns {shown(foreign)} hold token ids or log-probabilities made elsewhere; expected text alone, "
            f"because nothing here can check them against it: leave them out with data.columns: {{{remedy}}}",
        )
    parsed = row_format(row)
    return replace(parsed, pairs=tuple(_checked(pair, row) for pair in parsed.pairs))


def _remedy(missing: list[str], row_format: Format, row: RawRow) -> str:
    """Return which columns may be the missing ones, and how to say so; an empty string if none may."""
    others = [name for name in row.columns if name not in row_format.columns]
    meant = {name: likely_name(name, others) for name in missing}
    if meant[missing[0]] is None:
        return ""
    likely = {name: other for name, other in meant.items() if other is not None}
    paths = ", ".join(f"{name}: {shown(other, 60)}" for name, other in likely.items())
    return f"; did you mean {shown(likely[missing[0]], 60)} to be {missing[0]!r}? Then set data.columns: {{{paths}}}"


def _checked(pair: PreferencePair, row: RawRow) -> PreferencePair:
    """Check the texts of a pair, and add the numbers of its row."""
    for column in _SIDES:
        fields.check_not_blank(row.where, column, getattr(pair, column))
    if pair.chosen is not None and pair.chosen == pair.rejected:
        raise DataError(row.where, f"chosen and rejected are the same: {shown(pair.chosen, 60)}")
    if row.columns.get("tools") and isinstance(pair.prompt, str):
        raise DataError(row.where, "tools are for conversations; expected messages (format: chat)", "tools")
    return replace(
        pair,
        weight=fields.weight(row),
        margin=fields.optional_number(row, "margin", 0),
        preference_probability=fields.optional_number(row, "preference_probability", 0, 1),
        scores=pair.scores or fields.scores(row),
    )
