from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from lit_align.modules.setup_checks import TokenSizes, check_fit, check_reference

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


def sizes(tokens: tuple[str, ...] = TOKENS, pad: int = 0, longest: int = 10) -> TokenSizes:
    return TokenSizes("./words", {token: number for number, token in enumerate(tokens)}, pad, longest)


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


SCALED = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}


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
