"""What is checked, and refused or warned of, before the first step."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from lit_align.data import PreferenceData
from lit_align.data.prepared.prepare import Split, prepare_split
from lit_align.data.prepared.read_split import SplitReader
from lit_align.data.prepared.row_counts import BadRows
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import Cut
from lit_align.modules.setup_checks import (
    check_columns,
    check_fit,
    check_needs,
    check_reference,
    length_quarters,
    read_scales,
    response_lengths,
)
from lit_align.objectives import Term, WeightedSum, averaged_dpo, dpo, kto, odpo, sr_dpo
from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome, PairLogProbs


@pytest.fixture
def split(rows: Path) -> Split:
    data = PreferenceData(train=str(rows), tokenizer="testbed:policy")
    data.prepare_all()
    return data.splits["train"]


@pytest.mark.parametrize(
    ("objective", "found"), [(sr_dpo(), r"data\.prompted must be true"), (kto(), r"data\.mismatched must be true")]
)
def test_data_that_does_not_build_what_is_needed(objective: Objective, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        check_needs(objective, SimpleNamespace(prompted=False, mismatched=False, splits={}))


def test_a_beta_of_the_other_scale_is_said_once(split: Split, recwarn: pytest.WarningsRecorder) -> None:
    mean = float(response_lengths(split).mean())
    (reading,) = read_scales(averaged_dpo(beta=0.01), split)
    assert reading.at_sum_scale == pytest.approx(0.01 / mean)
    assert len([warning for warning in recwarn if "at the scale of sums" in str(warning.message)]) == 1


def test_a_beta_of_its_own_scale_is_not_warned_of(split: Split, recwarn: pytest.WarningsRecorder) -> None:
    (reading,) = read_scales(dpo(beta=0.1), split)
    assert reading.at_sum_scale == 0.1
    assert not [warning for warning in recwarn if "scale" in str(warning.message)]


def test_quarters_of_the_responses_hold_a_quarter_each(split: Split) -> None:
    lengths = response_lengths(split)
    assert len(lengths) == 22
    first, middle, last = length_quarters(split)
    assert (lengths <= middle).mean() == pytest.approx(0.5, abs=0.1)
    assert (lengths <= first).mean() == pytest.approx(0.25, abs=0.1)
    assert (lengths <= last).mean() == pytest.approx(0.75, abs=0.1)


# ── columns ──────────────────────────────────────────────────────────────────────────────────────────────────────────

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


def prepared(folder: Path, row: dict[str, Any]) -> dict[str, Split]:
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
    splits = prepared(tmp_path, row)
    with pytest.raises(ValueError, match=message):
        check_columns(Plain(), splits)
    check_columns(HonoursEverything(), splits)


def test_weights_and_scores_are_for_every_objective(tmp_path: Path) -> None:
    check_columns(Plain(), prepared(tmp_path, {**ROW, "weight": 2, "score_chosen": 1, "score_rejected": 0}))


def test_a_required_column_that_is_missing_is_named(tmp_path: Path) -> None:
    message = r"data.train has no values in margin, which NeedsMargins requires; .* \{margin: <its name>\}"
    with pytest.raises(ValueError, match=message):
        check_columns(NeedsMargins(), prepared(tmp_path, {**ROW, "preference_probability": 0.5}))
    check_columns(NeedsMargins(), prepared(tmp_path, {**ROW, "margin": 0.5}))


def test_odpo_is_refused_without_margins(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PreferenceObjective requires"):
        check_columns(odpo(), prepared(tmp_path, ROW))
    with pytest.raises(ValueError, match="WeightedSum requires"):
        check_columns(WeightedSum((Term("offset", odpo()),)), prepared(tmp_path, ROW))
    check_columns(odpo(), prepared(tmp_path, {**ROW, "margin": 0.5}))


# ── sizes of models ──────────────────────────────────────────────────────────────────────────────────────────────────

TOKENS = ("<pad>", "<s>", "</s>", "ship", "sea")
LLAMA = {"model_type": "llama", "vocab_size": 5, "max_position_embeddings": 64}
LEARNED = {"model_type": "gpt2", "vocab_size": 5, "n_positions": 64}
ALIBI = {"model_type": "bloom", "vocab_size": 5}


def model(folder: Path, config: dict[str, Any], tokens: tuple[str, ...] | None = TOKENS) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tokens is not None:
        words = {token: number for number, token in enumerate(tokens)}
        Tokenizer(models.WordLevel(words, unk_token="<pad>")).save(str(folder / "tokenizer.json"))
    return str(folder)


def sizes(tokens: tuple[str, ...] = TOKENS, pad: int = 0, longest: int = 10) -> SimpleNamespace:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return SimpleNamespace(tokenizer_name="./words", vocabulary=vocabulary, pad_token=pad, longest=longest)


@pytest.mark.parametrize("config", [LLAMA, LEARNED, ALIBI])
def test_what_fits_is_met_with_silence(tmp_path: Path, config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(sizes(longest=64), model(tmp_path, config))
        check_reference(str(tmp_path), str(tmp_path))


@pytest.mark.fault("B06")
def test_b06_a_tokenizer_bigger_than_the_embedding_names_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer \./words has ids up to 5 \(6 tokens\), .* has 5 rows"):
        check_fit(sizes((*TOKENS, "more")), model(tmp_path, LLAMA))


def test_b06_a_smaller_one_is_fine(tmp_path: Path) -> None:
    """Embeddings are often rounded up."""
    check_fit(sizes(), model(tmp_path, {**LLAMA, "vocab_size": 8}))


@pytest.mark.fault("B17")
def test_b17_a_pad_token_outside_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has ids up to 5"):
        check_fit(sizes(pad=5), model(tmp_path, LLAMA))


@pytest.mark.fault("B06b")
def test_b06b_a_foreign_tokenizer_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"not the one of .*: 2 of 5 tokens have other ids, such as 'ship'"):
        check_fit(sizes(("<pad>", "<s>", "</s>", "sea", "ship")), model(tmp_path, LLAMA))


def test_b06b_a_model_without_a_tokenizer_has_nothing_to_compare(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_fit(sizes(("<pad>", "<s>", "</s>", "sea", "ship")), model(tmp_path, LLAMA, tokens=None))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LLAMA, id="B13b, B14 rotary", marks=pytest.mark.fault("B13b", "B14")),
        pytest.param(LEARNED, id="B13 learned", marks=pytest.mark.fault("B13")),
    ],
)
def test_b13_longer_than_the_positions(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"longest pair has 65 tokens, .* 64 positions; lower data\.max_length to 64"):
        check_fit(sizes(longest=65), model(tmp_path, config))


@pytest.mark.fault("B14")
def test_b14_scaled_rotary_positions_are_meant(tmp_path: Path) -> None:
    for scaling in ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, SCALED):
        check_fit(sizes(longest=200), model(tmp_path, {**LLAMA, **scaling}))


SCALED = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}
LONGROPE = {
    **{"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0},
    "original_max_position_embeddings": 64,
}
BY_THE_LONGEST = {
    "longrope": {
        "max_position_embeddings": 256,
        "rope_parameters": LONGROPE,
    },
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
}


@pytest.mark.parametrize("kind", BY_THE_LONGEST)
def test_frequencies_that_the_longest_neighbour_decides(tmp_path: Path, kind: str) -> None:
    """Up to the boundary every row has the same frequencies, whatever other rows are in the batch."""
    folder = model(tmp_path, {**LLAMA, **BY_THE_LONGEST[kind]})
    check_fit(sizes(longest=64), folder)
    with pytest.raises(ValueError, match=rf"65 tokens, and the rotary .* \({kind}\) .*Lower data\.max_length to 64"):
        check_fit(sizes(longest=65), folder)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(4, id="B07 smaller", marks=pytest.mark.fault("B07")),
        pytest.param(6, id="B07b larger", marks=pytest.mark.fault("B07b")),
    ],
)
def test_b07_a_reference_of_another_vocabulary(tmp_path: Path, rows: int) -> None:
    policy = model(tmp_path / "policy", LLAMA)
    reference = model(tmp_path / "reference", {**LLAMA, "vocab_size": rows})
    with pytest.raises(ValueError, match=f"vocabulary of {rows}, but the policy's .* has 5"):
        check_reference(reference, policy)


@pytest.mark.fault("B07")
def test_b07_a_reference_of_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    policy = model(tmp_path / "policy", LLAMA)
    reference = model(tmp_path / "reference", LLAMA, ("<pad>", "<s>", "</s>", "sea", "ship"))
    with pytest.warns(UserWarning, match="2 of 5 tokens have other ids"):
        check_reference(reference, policy)
