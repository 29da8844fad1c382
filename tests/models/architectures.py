"""Tiny random models of many architectures, and a batch that reveals wrong layouts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import nn

from lit_align.models.loading import attention_for
from lit_align.types import PairBatch
from tests.conftest import pair_batch

VOCABULARY = 61
IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    **IDS,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **IDS}
SMALL: dict[str, Any] = {"hidden_size": 32, **IDS}

CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama_tied": lambda: hf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
    "phi3": lambda: hf.Phi3Config(**GROUPED),
    "phi_head_bias": lambda: hf.PhiConfig(**GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "cohere_scale": lambda: hf.CohereConfig(**GROUPED, logit_scale=0.3),
    "granite_scale": lambda: hf.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "gpt2": lambda: hf.GPT2Config(**GPT),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES),
    "opt": lambda: hf.OPTConfig(
        **SMALL, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=4),
    "mistral_window": lambda: hf.MistralConfig(**GROUPED, sliding_window=6),
    "gemma2_window_caps": lambda: hf.Gemma2Config(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=6,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=2.0,
    ),
    "gemma3_window": lambda: hf.Gemma3TextConfig(**GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=6),
    "gptj_eager": lambda: hf.GPTJConfig(**GPT, rotary_dim=8),
}
"""Models that support shared prompts."""

UNFIT = {
    "bloom": (lambda: hf.BloomConfig(**SMALL, n_layer=2, n_head=4), "padded"),
    "falcon_alibi": (
        lambda: hf.FalconConfig(**SMALL, num_hidden_layers=2, num_attention_heads=4, alibi=True),
        "padded",
    ),
    "mamba": (lambda: hf.MambaConfig(**SMALL, num_hidden_layers=2, state_size=8), "padded"),
    "gpt_oss_sinks": (lambda: hf.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, sliding_window=6), "padded"),
    "mpt_alibi": (lambda: hf.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=128, **IDS), "packed"),
    "gpt_neo_local": (
        lambda: hf.GPTNeoConfig(
            **SMALL,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=128,
        ),
        "packed",
    ),
}
"""Models that do not, and the fastest layout that they support."""

NARROW = ("mixtral", "gpt_oss_sinks", "gemma2_window_caps")
"""Models that cannot run in float64: their kernels do not support it, or their masks overflow."""


def build(config: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a random model with large weights: the usual initial weights are so small that mistakes would not show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = hf.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention_for(config, None)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
            else:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval()


def named(name: str) -> nn.Module:
    """The model of that name, in float64 where it can be."""
    config = CONFIGS[name]() if name in CONFIGS else UNFIT[name][0]()
    return build(config, torch.float32 if name in NARROW else torch.float64)


def telling_batch() -> PairBatch:
    """Pairs with prompts and responses of many lengths, longer than any window above.

    Sides of all kinds: of equal length, with the same first tokens, one a part of the other, both the same.
    """
    prompts = [[3, 4, 5, 6, 7, 8, 9], [7, 8], [9, 10, 11], [5], [12, 13, 14]]
    responses = [
        ([12, 13, 14, 15, 16, 17, 18, 40, 41], [22, 15, 19, 20, 31]),
        ([5, 6, 7, 8, 9], [4, 9, 8, 7]),
        ([3, 4, 5], [3, 6, 9, 10, 11, 12, 50, 51]),
        ([30, 31, 32], [30, 31]),
        ([33, 34], [33, 34]),
    ]
    return pair_batch(prompts, responses)


def opened_batch() -> PairBatch:
    """The same batch with twenty more tokens before each prompt, and one pair twice."""
    opening = [(7 * token) % 50 + 3 for token in range(20)]
    batch = telling_batch()
    rows = [0, 1, 2, 3, 4, 1]
    ids, mask = batch.input_ids[rows], batch.mask[rows]
    there = batch.attention_mask[rows]
    front = torch.tensor(opening).expand(*ids.shape[:2], -1)
    return replace(
        batch,
        input_ids=torch.cat([front, ids], -1),
        attention_mask=torch.cat([front > 0, there], -1),
        mask=torch.cat([front < 0, mask], -1),
        truncated=batch.truncated[rows],
        weight=batch.weight[rows],
        index=torch.arange(6),
    )


def absent_sides(batch: PairBatch) -> PairBatch:
    """Unpaired rows: one has no chosen side, one no rejected."""
    mask, there = batch.mask.clone(), batch.attention_mask.clone()
    for row, side in ((0, 0), (2, 1)):
        mask[row, side], there[row, side] = False, False
    return replace(batch, mask=mask, attention_mask=there)
