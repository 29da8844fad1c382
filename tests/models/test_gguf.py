"""A GGUF file is read as the model that it was made from, dequantized, with its tokenizer."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_align import testbed
from lit_align.callbacks.checkpointing.resume_check import model_fingerprint
from lit_align.data.text.tokenizer import load_tokenizer
from lit_align.locate import gguf_source
from lit_align.models import Loading, LoRA, load_causal_lm, load_policy
from lit_align.models.adapters import merge
from lit_align.models.loading import read_config

HEADS, POLICY = 4, "testbed:policy"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write the testbed's policy as llama.cpp converts it: rotary halves interleaved, layers in 8 bits."""
    gguf: Any = pytest.importorskip("gguf")
    quants: Any = import_module("gguf.quants")
    path = tmp_path_factory.mktemp("gguf") / "policy.gguf"
    model = load_causal_lm(POLICY, Loading())
    config: Any = model.config
    tokenizer = json.loads((testbed.path("policy") / "tokenizer.json").read_text("utf-8"))
    vocabulary = {token["content"]: token["id"] for token in tokenizer["added_tokens"]} | tokenizer["model"]["vocab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    for name, weight in model.state_dict().items():
        target = _name(name)
        if target is None:
            continue
        values = _interleaved(weight) if target.endswith(("attn_q.weight", "attn_k.weight")) else weight
        kind = gguf.GGMLQuantizationType.Q8_0 if values.dim() == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(target, quants.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def _name(name: str) -> str | None:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if not name.startswith("model.layers."):
        return fixed.get(name)  # the head is tied
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{NAMES[part.removesuffix('.weight')]}.weight"


def _interleaved(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    return weight.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def test_it_is_the_model_that_it_was_made_from(file: str, tmp_path: Path) -> None:
    """Within the rounding of 8 bits; it is whole, and can be saved and read back like another."""
    ids = torch.arange(4, 44).view(2, 20)
    model, original = load_causal_lm(file, Loading()), load_causal_lm(POLICY, Loading())
    with torch.no_grad():
        values, expected = model(ids).logits, original(ids).logits
    assert model.dtype == torch.float32
    assert float((values - expected).abs().mean()) < 0.05 * float(expected.abs().mean())
    adapted: Any = load_policy(file, Loading(), LoRA(2))
    assert adapted.peft_config["default"].base_model_name_or_path == file
    merge(adapted).save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(load_causal_lm(str(tmp_path), Loading())(ids).logits, values)


def test_its_tokenizer_gives_the_same_ids(file: str) -> None:
    own, original = load_tokenizer(file), load_tokenizer(POLICY)
    text = "SUBREDDIT: r/advice\nHe said: 123 apples, isn't it?"
    ids = own(text, add_special_tokens=False)["input_ids"]
    assert ids == original(text, add_special_tokens=False)["input_ids"]
    assert own.eos_token_id == original.eos_token_id


def test_a_file_that_is_missing_damaged_or_quantized_again(file: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^model file not found: owner/none.gguf \(expected a GGUF file on"):
        read_config("owner/none.gguf")
    with pytest.raises(FileNotFoundError, match=r"^tokenizer file not found: none.gguf"):
        load_tokenizer("none.gguf")
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(file).read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"^{broken} cannot be read: .*; expected the GGUF file of a "):
        read_config(str(broken))
    with pytest.raises(ValueError, match=r"a GGUF file, whose weights are dequantized, with loading.quantization nf4"):
        load_causal_lm(file, Loading(quantization="nf4"))
    assert model_fingerprint(file) != model_fingerprint(str(broken))


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.locate.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^x.gguf needs the package gguf: pip install 'lit-align\[gguf\]'$"):
        gguf_source("x.gguf")
