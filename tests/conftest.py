"""Fixtures for all tests: a two-layer Llama and a few pairs of token ids."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LIT_ALIGN_CACHE"] = os.devnull  # no folder: what would be kept outside a test's own fails

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import LlamaConfig, LlamaForCausalLM

from lit_align import testbed
from lit_align.types import PairBatch

settings.register_profile("gate", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

pytest_plugins = ["tests.tables", "tests.marks", "pytester"]
VOCABULARY = 31


def tiny_llama(seed: int = 0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Build a random two-layer Llama of a few thousand weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.weight, std=0.5)  # distributions worth comparing
    return model.eval()


def pair_batch(prompts: list[list[int]], responses: list[tuple[list[int], list[int]]], pad: int = 0) -> PairBatch:
    """Build a padded batch from lists of ids; every response token is scored."""
    rows = [[prompt + side for side in sides] for prompt, sides in zip(prompts, responses, strict=True)]
    width = max(len(ids) for sides in rows for ids in sides)
    padded = [[ids + [pad] * (width - len(ids)) for ids in sides] for sides in rows]
    attention = [[[True] * len(ids) + [False] * (width - len(ids)) for ids in sides] for sides in rows]
    scored = [
        [[False] * len(prompt) + [True] * len(side) + [False] * (width - len(prompt) - len(side)) for side in sides]
        for prompt, sides in zip(prompts, responses, strict=True)
    ]
    count = len(prompts)
    return PairBatch(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(attention),
        mask=torch.tensor(scored),
        truncated=torch.zeros(count, 2, dtype=torch.bool),
        weight=torch.ones(count),
        index=torch.arange(count),
    )


@pytest.fixture
def policy() -> LlamaForCausalLM:
    """A random tiny policy."""
    return tiny_llama(seed=0)


@pytest.fixture
def batch() -> PairBatch:
    """Three pairs of different lengths."""
    return pair_batch(
        prompts=[[1, 5, 6, 7], [1, 8], [1, 9, 10, 11, 12, 13]],
        responses=[([14, 15, 2], [16, 2]), ([17, 18, 19, 20, 2], [21, 2]), ([22, 2], [23, 24, 25, 2])],
    )


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of eleven pairs, which no batch size divides."""
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    lines = testbed.path("train.jsonl").read_text("utf-8").splitlines()[:11]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path
