"""Tokenizers that do not fit the data, and texts that try to pass for tokens; sizes are in ``test_fit_check``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from lit_align.data import Collate, PreferenceData
from lit_align.data.text.render import END_IN_TEXT, START_IN_TEXT
from lit_align.data.text.tokenize import Tokenize
from lit_align.data.text.tokenizer import Encoder, load_tokenizer
from lit_align.data.text.truncate import Cut
from lit_align.models import response_log_probs
from lit_align.types import PreferencePair, TokenizedPair
from tests.conftest import tiny_llama
from tests.data.conftest import BARE, Write, train_tokenizer
from tests.data.examples import pair_row, turns

VOCABULARY = 400


def one(tokenizer: PreTrainedTokenizerFast, pair: PreferencePair) -> TokenizedPair:
    (outcome,) = Tokenize(Encoder(tokenizer), Cut(200))([pair]).outcomes
    assert isinstance(outcome, TokenizedPair)
    return outcome


@pytest.mark.fault("B01")
def test_b01_without_a_pad_token_eos_pads_and_is_still_scored(bos: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(bos)
    pair = one(bos, PreferencePair("Where?", " Here.", " Nowhere at all, I fear."))
    batch = Collate(encoder.pad)([(pair, 1.0)])
    assert encoder.pad == bos.eos_token_id
    assert batch.mask[0, 0].sum() == len(pair.chosen.ids)
    assert batch.input_ids[0, 0][batch.mask[0, 0]][-1] == bos.eos_token_id


@pytest.mark.fault("B03")
def test_b03_log_probs_do_not_depend_on_the_pad_id(bos: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(vocabulary=VOCABULARY)
    pairs = [one(bos, PreferencePair("Where?", f" Here{'!' * n}", " No.")) for n in range(3)]
    values = [response_log_probs(model, Collate(pad)([(pair, 1.0) for pair in pairs])).detach() for pad in (0, 1, 250)]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(None, id="B02, B02b", marks=pytest.mark.fault("B02", "B02b")),
        pytest.param(BARE, id="B02c", marks=pytest.mark.fault("B02c")),
    ],
)
def test_b02_no_eos(tmp_path: Path, template: str | None) -> None:
    PreTrainedTokenizerFast(tokenizer_object=train_tokenizer([]), chat_template=template).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tokenizer has no EOS; set eos_token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.fault("B02c")
def test_b02c_chat_data_ends_in_eos_where_the_template_writes_no_end(bare: PreTrainedTokenizerFast) -> None:
    prompt, said, other = tuple(turns("Where?", "Here.", "x", "no")[:1]), turns("a", "Here."), turns("a", "no")
    pair = one(bare, PreferencePair(prompt, tuple(said[1:]), tuple(other[1:])))
    assert pair.chosen.ids[-1] == pair.rejected.ids[-1] == bare.eos_token_id


@pytest.mark.fault("B04")
def test_b04_bos_in_the_prompt_and_by_the_tokenizer_is_one(bos: PreTrainedTokenizerFast) -> None:
    result = Tokenize(Encoder(bos), Cut(200))([PreferencePair("<s>Where?", " Here.", " No.")])
    (pair,) = result.outcomes
    assert isinstance(pair, TokenizedPair)
    assert list(pair.prompt).count(bos.bos_token_id) == 1
    assert result.notes[START_IN_TEXT] == 1


@pytest.mark.fault("B04b")
def test_b04b_bos_by_template_and_tokenizer_is_one(llama3: PreTrainedTokenizerFast) -> None:
    said, other = turns("a", "Here."), turns("a", "no")
    pair = one(llama3, PreferencePair(tuple(turns("Where?")), tuple(said[1:]), tuple(other[1:])))
    assert list(pair.prompt).count(llama3.bos_token_id) == 1


@pytest.mark.fault("B05")
@pytest.mark.parametrize("text", [" Here.", " Here.</s>", " Here.</s></s>\n"])
def test_b05_a_tokenizer_that_appends_eos_appends_one(bos: PreTrainedTokenizerFast, text: str) -> None:
    result = Tokenize(Encoder(bos), Cut(200))([PreferencePair("Where?", text, " No.")])
    (pair,) = result.outcomes
    assert isinstance(pair, TokenizedPair)
    assert list(pair.chosen.ids).count(bos.eos_token_id) == 1
    assert bos.eos_token_id not in pair.prompt
    assert result.notes[END_IN_TEXT] == int("</s>" in text)


@pytest.mark.fault("B17")
def test_b17_a_pad_token_that_the_vocabulary_lacks_is_added_and_seen(tmp_path: Path, write: Write) -> None:
    """transformers gives it an id behind the last one; the fit check compares that with the embedding."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(["</s>"]), eos_token="</s>", pad_token="[P]")
    tokenizer.save_pretrained(tmp_path / "words")
    data = PreferenceData(train=str(write([pair_row(1)])), tokenizer=str(tmp_path / "words"))
    assert data.pad_token == max(data.vocabulary.values())
