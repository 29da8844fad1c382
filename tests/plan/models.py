"""Models of a few million random weights, and pairs that are long enough to need memory."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from transformers import LlamaConfig, OPTConfig, PretrainedConfig

from lit_align import testbed

SIZES = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}

ARCHITECTURES: dict[str, PretrainedConfig] = {
    "opt1.3b_hh": OPTConfig(hidden_size=2048, ffn_dim=8192, num_hidden_layers=24, num_attention_heads=32),
    "llama2_7b_hh": LlamaConfig(),
    "llama3.2_1b_tldr": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "llama3.2_3b_tldr": LlamaConfig(
        vocab_size=128256,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=28,
        num_attention_heads=24,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
}
"""Run of the paper → architecture of its models."""


def model(folder: Path, **changes: object) -> Path:
    """Write a configuration like the testbed's policy with other sizes: by default 38 million parameters."""
    shutil.copytree(testbed.path("policy"), folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    sizes = {**SIZES, "num_key_value_heads": 6, "head_dim": 64, "vocab_size": 32000, **changes}
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    return folder


def pairs(path: Path, count: int = 24) -> Path:
    """Write pairs of about 200 prompt tokens and 90 response tokens, made of the testbed's."""
    lines = [json.loads(line) for line in testbed.path("train.jsonl").read_text("utf-8").splitlines()[:400]]
    choose = random.Random(0)
    rows = []
    for number in range(count):
        some = choose.sample(lines, 4)
        row = {side: " ".join(line[side] for line in some) + f" {number}" for side in ("chosen", "rejected")}
        rows.append({"prompt": " ".join(line["prompt"] for line in some[:3]), **row})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
