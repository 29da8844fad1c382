"""A plan for a GPU reads as a GPU does: kernels of variable length, masks with repeated keys, tiles of its size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.cli.error_messages import KNOBS
from lit_align.models import ForwardPass, Loading
from lit_align.models.logps import varlen
from lit_align.models.logps.reader import tile_of_card
from lit_align.modules import LitOnline, LitPreference
from lit_align.objectives import dpo
from lit_align.plan import Parallelism, estimate, rollout_batch, uniform_batch
from lit_align.plan.suggestions import Case, knobs
from tests.plan.models import model
from tests.plan.test_estimate import drawing

CUDA = Parallelism(precision="bf16-mixed")
BATCH = uniform_batch(4, prompt=40, response=24)
LAYERS = 2


def policy(folder: Path, **how: Any) -> LitPreference:
    return LitPreference(str(folder), dpo(), loading=Loading(weights="random"), **how)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    return model(folder, num_hidden_layers=LAYERS, num_key_value_heads=2, tie_word_embeddings=False)


def test_kernels_of_variable_length_are_rehearsed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 16 bits; both models, every layer. Operations are those of a CPU's segments."""
    rows: list[tuple[int, int]] = []
    real = varlen._torch_kernel

    def kernel(query: Any, key: Any, value: Any, sequences: varlen.Sequences) -> Any:
        assert query.dtype == torch.bfloat16
        rows.append((len(query), len(key)))
        return real(query, key, value, sequences)

    monkeypatch.setattr(varlen, "kernel", lambda: kernel)
    planned = estimate(policy(folder), BATCH, CUDA)
    assert rows == [(4 * (40 + 2 * 24) - 8, 4 * 2 * 64 - 8)] * 2 * LAYERS  # the last token of a side is not read
    on_cpu = estimate(policy(folder, forward_pass=ForwardPass(tokens_at_once=0)), BATCH, replace(CUDA, device="cpu"))
    assert planned.operations == pytest.approx(on_cpu.operations, rel=0.02)


def test_a_dense_mask_counts_with_repeated_keys(tmp_path: Path) -> None:
    """Heads that no kernel reads, in float32: the mask once, and in each layer keys and values of all heads."""
    sizes = {"num_hidden_layers": LAYERS, "head_dim": 12, "num_attention_heads": 6, "tie_word_embeddings": False}
    width, kept = 96, []  # 88 tokens a pair, in rows of whole sixteenths
    for groups in (1, 6):
        folder = model(tmp_path / str(groups), **sizes, num_key_value_heads=groups)
        kept.append(estimate(policy(folder), BATCH, replace(CUDA, precision="32-true")).phases["forward"].activations)
    assert kept[0] == pytest.approx(kept[1], rel=0.05)  # one group, repeated, takes as much as six
    folder = tmp_path / "1"
    whole = ForwardPass(tokens_at_once=0)
    segments = estimate(policy(folder, forward_pass=whole), BATCH, Parallelism(device="cpu")).phases["forward"]
    mask, keys = 4 * 4 * width * width, LAYERS * 2 * 5 * 12 * 4 * width * 4
    assert kept[0] - segments.activations > mask + keys  # and padding


@pytest.mark.parametrize("gigabytes", [8, 80])
def test_tiles_are_those_of_the_card(folder: Path, gigabytes: int) -> None:
    module = policy(folder)
    estimate(module, BATCH, replace(CUDA, device_memory=gigabytes * 2**30))
    assert module.readers._workspace is not None
    assert module.readers._workspace.megabytes == tile_of_card(gigabytes * 2**30)


def test_the_optimizer_is_fused_as_in_a_run(folder: Path) -> None:
    """Its step makes no copy of the weights."""
    planned = estimate(policy(folder), BATCH, CUDA).phases["step"]
    assert planned.working < planned.gradients / 4


@pytest.mark.long
def test_each_knob_of_an_error_of_memory_has_a_figure(folder: Path) -> None:
    """Of the run as it is, and with one setting changed, which saves memory; the case stays as it was."""
    loading = Loading(weights="random")
    case = Case(policy(folder), uniform_batch(24, prompt=200, response=100), CUDA)
    figures = dict(knobs(case))
    assert [*figures] == ["", *(setting for setting, _ in KNOBS if "micro_batch" not in setting)]
    assert all(figures[setting] < figures[""] for setting in figures if setting)
    assert case.module.loading == loading
    assert case.module.lora is None
    online: LitOnline = drawing(str(folder))
    rollout = rollout_batch(uniform_batch(8, prompt=200, response=1), responses=2, tokens=40)
    assert [*dict(knobs(Case(online, rollout, CUDA)))][:2] == ["", "model.micro_batch: 1"]
