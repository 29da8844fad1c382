"""Compiled layers compute the same; Liger's kernels are used where they are available, and refused elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers.models.llama import modeling_llama

from lit_align.models import ForwardPass, Loading, load_causal_lm
from lit_align.models import loading as kernels
from lit_align.modules.log_probs import LogProbReaders
from tests.models.architectures import named, telling_batch


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
@pytest.mark.parametrize("layout", [pytest.param("shared", marks=pytest.mark.long), "padded"])
def test_compiled_layers_give_the_same(layout: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for batches of other lengths, with gradient, and under the same names."""
    monkeypatch.setattr(kernels, "BACKEND", backend)
    torch._dynamo.reset()
    counters.clear()
    batch, short = telling_batch(), telling_batch().rows(slice(1, 3))
    plain, compiled = named("llama").float(), named("llama").float()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    found = {}
    for model, how in ((plain, ForwardPass(layout=layout)), (compiled, ForwardPass(layout=layout, compile=True))):
        sources = LogProbReaders(how)
        values = [sources.read(model, pairs) for pairs in (batch, short)]
        model.zero_grad()
        values[0].sum().backward()
        found[how.compile] = [*values, *(weight.grad for weight in model.parameters() if weight.grad is not None)]
    assert counters["frames"]["ok"] > 0
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for one, other in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_nothing_is_compiled_unless_it_is_asked_for() -> None:
    counters.clear()
    model = named("llama")
    LogProbReaders(ForwardPass(layout="shared")).read(model, telling_batch())
    assert not counters["frames"]


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, bool]]]:
    """A fake device, and a fake package that records its calls."""
    asked: list[tuple[str, dict[str, bool]]] = []
    package, inner, patch = (
        ModuleType(name) for name in ("liger_kernel", "liger_kernel.transformers", "monkey_patch")
    )
    patches: Any = patch
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": None}

    def apply(model: Any, **how: bool) -> None:
        asked.append((model.config.model_type, how))
        modeling_llama.apply_rotary_pos_emb = modeling_llama.LlamaRMSNorm = None  # as Liger does, for all models

    patches._apply_liger_kernel_to_instance = apply
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", patches)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return asked


def saved(name: str, folder: Path) -> str:
    named(name).save_pretrained(folder)
    return str(folder)


def test_liger_leaves_the_loss_to_us(liger: list[tuple[str, dict[str, bool]]], tmp_path: Path) -> None:
    load_causal_lm(saved("llama", tmp_path), Loading(kernels="liger"))
    assert liger == [("llama", {"cross_entropy": False, "fused_linear_cross_entropy": False})]
    assert modeling_llama.apply_rotary_pos_emb is not None
    assert modeling_llama.LlamaRMSNorm is not None


def test_liger_has_nothing_for_it(liger: list[object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="liger, which has none for gpt2; it has: llama"):
        load_causal_lm(saved("gpt2", tmp_path), Loading(kernels="liger"))
    assert not liger


def test_liger_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("llama", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need a CUDA device"):
        load_causal_lm(folder, Loading(kernels="liger"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install liger-kernel"):
        load_causal_lm(folder, Loading(kernels="liger"))
