"""The end of a response, known from the template where no response of the data shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from lit_align.data import PreferenceData
from lit_align.data.prepared.mixture import Source
from tests.data.conftest import Write
from tests.data.examples import pair_row, turns
from tests.data.families import FAMILIES, tokenizer_of

ROW = {"prompt": turns("a"), "chosen": turns("a", "b")[1:], "rejected": turns("a", "c")[1:]}
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def ends(tokenizer: PreTrainedTokenizerFast, folder: Path, *sources: Source, **settings: Any) -> set[str]:
    """The end tokens of some data, spelled."""
    tokenizer.save_pretrained(folder / "tokenizer")
    data = PreferenceData(train=list(sources), tokenizer=str(folder / "tokenizer"), **settings)
    data.setup("fit")
    return {data.decode([token]) for token in data.stop_tokens}


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_alone_end_as_pairs_do(name: str, write: Write, tmp_path: Path) -> None:
    path, tokenizer = str(write([ROW])), tokenizer_of(name)
    found = ends(tokenizer, tmp_path, Source(path, format="prompts"))
    assert found == ends(tokenizer, tmp_path, Source(path)) == {FAMILIES[name].ends, str(tokenizer.eos_token)}


def test_a_template_that_opens_an_answer_with_more_than_it_keeps(
    chatml: PreTrainedTokenizerFast, write: Write, tmp_path: Path
) -> None:
    chatml.save_pretrained(tmp_path / "chatml")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "chatml", eos_token="<pad>", chat_template=THINKS)
    assert ends(tokenizer, tmp_path, Source(str(write([ROW])), format="prompts")) == {"<|im_end|>", "<pad>"}


def test_a_template_without_an_end_of_turn_ends_in_eos(
    bare: PreTrainedTokenizerFast, write: Write, tmp_path: Path
) -> None:
    assert ends(bare, tmp_path, Source(str(write([ROW])), format="prompts")) == {"</s>"}


def test_conversations_among_texts_are_found(llama3: PreTrainedTokenizerFast, write: Write, tmp_path: Path) -> None:
    texts = Source(str(write([pair_row(0)], "texts.jsonl")))
    prompts = Source(str(write([{"prompt": "p"}, {"prompt": turns("a")}], "prompts.jsonl")), format="prompts")
    assert ends(llama3, tmp_path, texts) == {"<|end_of_text|>"}
    assert ends(llama3, tmp_path, texts, prompts) == {"<|end_of_text|>", "<|eot_id|>"}


def test_responses_that_were_all_cut_do_not_hide_it(
    llama3: PreTrainedTokenizerFast, write: Write, tmp_path: Path
) -> None:
    found = ends(llama3, tmp_path, Source(str(write([ROW]))), max_response_length=1)
    assert found == {"<|end_of_text|>", "<|eot_id|>"}
