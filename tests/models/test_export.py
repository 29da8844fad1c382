"""An exported folder contains the trained model as plain transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from lit_align.data.text.tokenizer import load_tokenizer
from lit_align.models import Loading, LoRA
from lit_align.models.export import (
    ExportError,
    check_values,
    end_scores,
    merge,
    pooled_scores,
    pooling_pad,
    save_causal_lm,
    save_score_model,
)
from lit_align.models.score_model import ScoreModel, load_score_model
from tests.conftest import VOCABULARY, tiny_llama
from tests.runner import BASE, QUIET, lit_align, ok

SEQUENCES = [[1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 2]]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer("testbed:policy")


# ── padding of reward models ────────────────────────────────────────────────────────────────────────────────────────


def test_padding_of_its_own_stays(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer.pad_token_id
    assert pooling_pad(tokenizer) == before == tokenizer.pad_token_id


@pytest.mark.parametrize("role", ["eos_token", "unk_token", "bos_token"])
def test_padding_with_another_role_is_replaced(tokenizer: PreTrainedTokenizerFast, role: str) -> None:
    if getattr(tokenizer, role) is None:
        tokenizer.add_special_tokens({role: "<|role|>"})
    tokenizer.add_special_tokens({"pad_token": getattr(tokenizer, role)})
    pad = pooling_pad(tokenizer)
    assert pad == tokenizer.pad_token_id != tokenizer.convert_tokens_to_ids(getattr(tokenizer, role))


def test_padding_that_the_template_writes_is_replaced(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"pad_token": "<|turn|>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    assert pooling_pad(tokenizer) != tokenizer.convert_tokens_to_ids("<|turn|>")


def test_a_tokenizer_without_padding_gets_a_new_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token})
    tokenizer.chat_template = "{{ messages }}<pad><|pad|><|pad_1|>"  # whatever it had that pads has another role now
    pad = pooling_pad(tokenizer)
    assert tokenizer.convert_ids_to_tokens(pad) == "<|pad_2|>" == tokenizer.pad_token


@pytest.mark.parametrize("own", [0, 2, None], ids=["pad", "pad is eos", "no pad"])
@pytest.mark.parametrize("pad", [0, VOCABULARY + 2], ids=["a row is there", "rows are appended"])
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
def test_pooling_of_the_library_reads_our_scores(tmp_path: Path, own: int | None, pad: int, lora: bool) -> None:
    body = tiny_llama()
    body.config.pad_token_id = own
    body.save_pretrained(tmp_path / "body")
    model = load_score_model(str(tmp_path / "body"), Loading(), head="fresh")
    if lora:
        inner: Any = model.model
        model = ScoreModel(LoRA(rank=2).wrap(inner, head="score")).eval()
        torch.nn.init.normal_(next(w for name, w in model.named_parameters() if "lora_B" in name), std=0.5)
    ours = end_scores(model, SEQUENCES)
    save_score_model(model, tmp_path / "rm", pad)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    alone = torch.cat([pooled_scores(theirs, [ids]) for ids in SEQUENCES])
    torch.testing.assert_close(alone, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled_scores(theirs, SEQUENCES), ours, rtol=1e-5, atol=1e-5)
    assert (model.model.config.vocab_size, theirs.config.vocab_size) == (VOCABULARY, max(VOCABULARY, pad + 1))


def test_a_reward_run_whose_padding_is_its_end_token(rows: Path, tmp_path: Path) -> None:
    """The folder names its padding token, and a run can train on from it or from its adapter alone."""
    body = tmp_path / "body"
    AutoModelForCausalLM.from_pretrained(Path(load_tokenizer("testbed:policy").name_or_path)).save_pretrained(body)
    tokenizer = load_tokenizer("testbed:policy")
    tokenizer.add_special_tokens({"pad_token": tokenizer.eos_token})
    tokenizer.save_pretrained(body)
    words = ("fit", "--task", "reward", *BASE, *QUIET, "--model.policy", body, "--data.train", rows)
    short = ("--samples.count", 0, "--trainer.max_steps", 2, "--model.lora.rank", 2, "--data.batch_size", 4)
    ok(lit_align(*words, *short, "--run", tmp_path / "run"))
    exported = tmp_path / "run" / "reward_model"
    pad = load_tokenizer(str(exported)).pad_token_id
    assert pad != tokenizer.eos_token_id
    assert json.loads((exported / "config.json").read_text())["pad_token_id"] == pad
    ok(lit_align(*words, *short, "--export.form", "adapter", "--run", tmp_path / "adapter"))
    assert f"`config.pad_token_id = {pad}`" in (tmp_path / "adapter" / "reward_model" / "README.md").read_text()


# ── merging ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def tied(targets: list[str]) -> PeftModel:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LoRA(rank=2, targets=targets).wrap(LlamaForCausalLM(config))
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, std=0.3 if "lora" in name else 0.1)
    return model.eval()


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"], ["q_proj"]])
@torch.no_grad()
def test_merging_into_tied_weights_changes_one_of_them(targets: list[str], tmp_path: Path) -> None:
    model, ids = tied(targets), torch.arange(12).view(2, 6)
    expected = model(input_ids=ids).logits
    torch.testing.assert_close(merge(tied(targets))(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    save_causal_lm(model, tmp_path, dict(model.state_dict()))
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(read(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert read.config.tie_word_embeddings is (targets == ["q_proj"])


# ── reading back ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_other_numbers_are_refused() -> None:
    trained = torch.tensor([-1.0, -2.0])
    check_values(Path("x"), [trained + 1e-4], trained, rounds=False)
    check_values(Path("x"), [trained + 0.05], trained, rounds=True)
    for wrong in (trained + 0.05, trained * torch.nan):
        with pytest.raises(ExportError, match=r"is not the trained one: read back from x, its numbers differ by"):
            check_values(Path("x"), [trained, wrong], trained, rounds=False)
