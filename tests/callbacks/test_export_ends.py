"""An exported policy stops where the responses of its data end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_align.data import PreferenceData
from lit_align.models.export import add_stop_tokens, save_causal_lm
from tests.data.conftest import CHATML, train_tokenizer
from tests.data.examples import turns

OWN, END = "<|endoftext|>", "<|im_end|>"


def model_that_says(token: int, own: int | list[int] | None, vocabulary: int) -> LlamaForCausalLM:
    """A model whose hidden states are all ones and whose head always predicts one token."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, bos_token_id=None, eos_token_id=own))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(0.0 if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")) else 1.0)
        model.lm_head.weight[token] = 1.0
    model.generation_config.eos_token_id = own
    return model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of a base model to which a chat template was added."""
    return PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer([OWN, "<|im_start|>", END]),
        eos_token=OWN,
        extra_special_tokens=["<|im_start|>", END],
        chat_template=CHATML,
    )


def response_ends(tokenizer: PreTrainedTokenizerFast, folder: Path) -> frozenset[int]:
    tokenizer.save_pretrained(folder / "tokenizer")
    row = {"prompt": turns("a"), "chosen": turns("a", "b")[1:], "rejected": turns("a", "c")[1:]}
    (folder / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    data = PreferenceData(train=str(folder / "rows.jsonl"), tokenizer=str(folder / "tokenizer"))
    data.prepare_all()
    data.train_dataloader()
    other = PreferenceData(tokenizer=str(folder / "tokenizer"))
    other.load_state_dict(data.state_dict())
    assert other.response_ends == data.response_ends, "a checkpoint knows them without the data"
    return data.response_ends


def test_plain_transformers_stops_at_the_end_of_turn(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    own, end = tokenizer.convert_tokens_to_ids([OWN, END])
    model = model_that_says(end, own, len(tokenizer))
    ends = response_ends(tokenizer, tmp_path)
    assert ends == {end}
    lengths = []
    for added in ((), ends):
        folder = tmp_path / f"policy{len(added)}"
        save_causal_lm(model, folder, dict(model.state_dict()))
        add_stop_tokens(model, folder, added)
        tokenizer.save_pretrained(folder)
        exported: Any = AutoModelForCausalLM.from_pretrained(folder)
        spelled: Any = AutoTokenizer.from_pretrained(folder)
        prompt = spelled.apply_chat_template(turns("a"), add_generation_prompt=True, return_tensors="pt")
        lengths.append(exported.generate(**prompt, max_new_tokens=5).shape[1] - prompt["input_ids"].shape[1])
    assert lengths == [5, 1]


@pytest.mark.parametrize(("own", "expected"), [(0, [0, 2]), ([0, 1], [0, 1, 2]), (None, 2), ([2, 0], [2, 0]), (2, 2)])
def test_end_tokens_of_the_model_stay(own: int | list[int] | None, expected: int | list[int], tmp_path: Path) -> None:
    model = model_that_says(2, own, 8)
    save_causal_lm(model, tmp_path, dict(model.state_dict()))
    add_stop_tokens(model, tmp_path, {2})
    assert json.loads((tmp_path / "generation_config.json").read_text("utf-8"))["eos_token_id"] == expected
    assert model.generation_config.eos_token_id == own
