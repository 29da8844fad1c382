from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_align.data.prepared.prepare import Split, prepare_split
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import Cut
from lit_align.modules.setup_checks import check_columns
from lit_align.objectives import Term, WeightedSum, odpo
from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome, PairLogProbs

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}
UNPAIRED = {"prompt": "p", "completion": "a", "label": True}


class Plain(Objective):
    def __call__(self, logps: PairLogProbs) -> Outcome:
        raise NotImplementedError


class HonoursEverything(Plain):
    @property
    def needs(self) -> Needs:
        return Needs(unpaired=True, columns=frozenset({"margin", "preference_probability"}))


class NeedsMargins(HonoursEverything):
    @property
    def needs(self) -> Needs:
        return replace(super().needs, required_columns=frozenset({"margin"}))


def split(folder: Path, row: dict[str, Any]) -> dict[str, Split]:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    tokenize = Tokenize(Encoder(load_tokenizer("testbed:policy")), Cut(64))
    return {"train": prepare_split(SplitReader.of(str(path)), tokenize, BadRows())}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (UNPAIRED, "data.train is unpaired .prompt, completion, label., but Plain compares a chosen"),
        ({**ROW, "margin": 1}, r"data.train has the columns margin, which .* leave them out: .*\{margin: null\}"),
        (
            {**ROW, "margin": 1, "preference_probability": 0.5},
            r"columns margin, preference_probability, .*\{margin: null, preference_probability: null\}",
        ),
    ],
)
def test_what_the_objective_would_ignore_is_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    splits = split(tmp_path, row)
    with pytest.raises(ValueError, match=message):
        check_columns(Plain(), splits)
    check_columns(HonoursEverything(), splits)


def test_weights_and_scores_are_for_every_objective(tmp_path: Path) -> None:
    check_columns(Plain(), split(tmp_path, {**ROW, "weight": 2, "score_chosen": 1, "score_rejected": 0}))


def test_a_required_column_that_is_missing_is_named(tmp_path: Path) -> None:
    message = r"data.train has no values in margin, which NeedsMargins requires; .* \{margin: <its name>\}"
    with pytest.raises(ValueError, match=message):
        check_columns(NeedsMargins(), split(tmp_path, {**ROW, "preference_probability": 0.5}))
    check_columns(NeedsMargins(), split(tmp_path, {**ROW, "margin": 0.5}))


def test_odpo_is_refused_without_margins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PreferenceObjective requires"):
        check_columns(odpo(), split(tmp_path, ROW))
    with pytest.raises(ValueError, match="WeightedSum requires"):
        check_columns(WeightedSum((Term("offset", odpo()),)), split(tmp_path, ROW))
    check_columns(odpo(), split(tmp_path, {**ROW, "margin": 0.5}))
