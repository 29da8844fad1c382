"""Which way packed tokens attend on which device, and what becomes of a way that does not work."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import flex_attention

from lit_align.models import ForwardPass
from lit_align.models.logps import inputs, paths, varlen
from lit_align.models.logps.attention import NAME, block_mask, flex_width
from lit_align.models.logps.check import choose_layout
from lit_align.models.logps.log_probs import LogProbReader
from lit_align.models.logps.packing import common_prefix, pack, shared_tokens
from lit_align.models.logps.paths import Attention, choose_path
from lit_align.models.logps.varlen import Sequences
from lit_align.modules import LitPreference
from lit_align.modules.log_probs import LogProbReaders
from lit_align.objectives import averaged_dpo
from tests.models.architectures import CONFIGS, build, named, opened_batch, telling_batch
from tests.models.logps.test_varlen import by_sequence
from tests.standin import DEVICE, standin

CUDA = Attention(NAME, torch.bfloat16, torch.device("cuda"))


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({}, "varlen", "skip what a mask would hide"),
        ({"device": torch.device("cpu")}, "segments", "a CPU is fastest"),
        ({"device": torch.device("cpu"), "rehearsed": True}, "varlen", "skip what a mask would hide"),
        ({"dtype": torch.float32}, "flex", "compute in 16 bits, not in float32"),
        ({"head_size": 60}, "flex", "no heads of 60 channels"),
        ({"head_size": 320}, "flex", "no heads of 320 channels"),
        ({"soft_cap": True}, "flex", "know no soft cap"),
        ({"refused": frozenset({"varlen"})}, "flex", "do not give the model's own numbers"),
        ({"refused": frozenset({"varlen", "flex"})}, "dense", "FlexAttention does not give the model's own numbers"),
        ({"dtype": torch.float32, "head_size": 8}, "dense", "FlexAttention has no heads of 8 channels"),
        ({"device": torch.device("mps")}, "dense", "FlexAttention is compiled for CUDA, not for mps"),
        ({"name": "eager"}, "dense", "attention eager takes dense masks"),
        ({"name": "flex_attention"}, "flex", "the model's own attention is flex_attention"),
    ],
)
def test_the_first_that_works_is_chosen(
    changes: dict[str, Any], path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(paths, "has_triton", lambda: True)
    chosen, why = choose_path(replace(CUDA, **changes), share=True)
    assert chosen == path
    assert reason in why


def test_old_cards_and_machines_without_a_compiler_get_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(paths, "has_triton", lambda: False)
    assert choose_path(CUDA, share=True) == (
        "dense",
        "kernels of variable length need a card of the Ampere generation or a later one; FlexAttention needs triton, "
        "which is not installed",
    )


def test_a_wrong_path_is_left_and_the_layout_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is off by a token: the check refuses it and takes the mask; one that is right is kept."""

    def shifted(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
        return by_sequence(query, key, value.roll(1, 0), sequences)

    monkeypatch.setattr(paths, "varlen_obstacle", lambda *_: None)
    monkeypatch.setattr(paths, "_flex_obstacle", lambda attention: "FlexAttention is not here")
    device = torch.device("cpu")
    for stand_in, path in ((by_sequence, "varlen"), (shifted, "dense")):
        monkeypatch.setattr(varlen, "kernel", lambda stand_in=stand_in: stand_in)
        reader = LogProbReader(named("llama"), rehearsed=True)
        choice = choose_layout(reader, telling_batch())
        assert choice.layout == "shared"
        assert reader.path(device)[0] == path
        assert [line.partition(": ")[0] for line in choice.warnings] == (
            [] if path == "varlen" else ["attention by varlen is not used"]
        )


def test_the_choice_is_told_once_and_kept_for_models_alike(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lit_align.modules.log_probs.rank_zero_info", told.append)
    readers, reader = LogProbReaders(), LogProbReader(named("llama"))
    reader.use("shared", refused=frozenset({"varlen"}))
    for _ in range(2):
        readers._tell_path(reader, torch.device("mps"))
    readers._tell_path(reader, torch.device("cpu"))
    (line,) = told
    assert line.startswith("model.forward_pass: layout shared, attention by dense: kernels of variable length do not")


def test_masks_on_devices_are_numbers_in_the_dtype_of_the_run() -> None:
    """Built once for all layers; a row is as wide as kernels want their masks."""
    device = torch.device("cpu")
    attention = Attention(NAME, torch.bfloat16, device, refused=frozenset({"varlen", "flex"}), rehearsed=True)
    mask = inputs.packed(telling_batch(), attention, share=True).arguments["attention_mask"]
    assert mask.dtype == torch.bfloat16
    assert mask.shape[-1] % 16 == 0
    reader = LogProbReader(named("llama"), rehearsed=True)
    reader.use("shared", refused=frozenset({"varlen", "flex"}))
    values = reader(telling_batch()).policy
    reader.use("plain")
    torch.testing.assert_close(values, reader(telling_batch()).policy)


def test_rows_of_flex_attention_have_few_widths() -> None:
    """At most eight for each doubling, and little padding."""
    widths = {flex_width(tokens) for tokens in range(1, 16385)}
    assert len(widths) <= 8 * 8
    assert all(width % 128 == 0 for width in widths)
    assert all(flex_width(tokens) <= 1.125 * tokens + 128 for tokens in range(1, 16385, 7))


def test_flex_attention_is_compiled_for_a_width_and_not_for_a_batch() -> None:
    """Batches of one width with other prefixes and segments share the compiled code."""
    counter = CompileCounter()
    compiled = torch.compile(flex_attention, backend=counter)
    batches = [opened_batch(), telling_batch(), telling_batch().rows(slice(1, 4))]
    for batch in batches:
        packing = pack(batch, shared_tokens(batch), common_prefix(batch))
        width = flex_width(len(packing.ids))
        states = torch.randn(3, 1, 2, width, 8)
        compiled(*states, block_mask=block_mask(packing, width))
    torch._dynamo.reset()
    assert counter.frame_count == 1


def test_flex_attention_serves_under_the_name_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of blocks reaches FlexAttention through a model that was loaded with sdpa."""
    called: list[int] = []

    def dense(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> tuple[Any, None]:
        called.append(1)
        output = flex_attention(query, key, value, block_mask=mask, scale=options["scaling"], enable_gqa=True)
        return output.transpose(1, 2), None

    monkeypatch.setattr("lit_align.models.logps.attention.flex_attention_forward", dense)
    reader = LogProbReader(build(CONFIGS["llama"](), torch.float32))
    reader.use("shared")
    monkeypatch.setattr(inputs, "choose_path", lambda *_: ("flex", ""))
    with torch.no_grad():
        values = reader(opened_batch()).policy
        assert len(called) == 2
        reader.use("plain")
        torch.testing.assert_close(values, reader(opened_batch()).policy, rtol=1e-4, atol=1e-4)


def test_a_batch_that_a_worker_has_packed_is_not_packed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It travels between processes and through selections; what changes rows leaves it behind."""
    monkeypatch.setattr(varlen, "kernel", lambda: by_sequence)
    monkeypatch.setattr(paths, "varlen_obstacle", lambda *_: None)
    batch = replace(opened_batch(), prompted=telling_batch())
    reader = LogProbReader(named("llama"), rehearsed=True)
    reader.use("shared")
    expected = [reader(part).policy for part in (batch, batch.rows(slice(1, 3)), batch.chosen_side(), telling_batch())]
    ahead = pickle.loads(pickle.dumps(inputs.pack_ahead(batch)))
    parts = [ahead.rows(slice(1, 3)), ahead.chosen_side()]
    assert [part.packing for part in parts] == [None, None]
    found = [reader(part).policy for part in parts]
    monkeypatch.setattr(inputs, "pack", None)
    monkeypatch.setattr(inputs, "varlen_plan", None)
    found = [reader(ahead).policy, *found, reader(ahead.prompted).policy]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    with standin(monkeypatch) as waits:
        moved = ahead.to(DEVICE, non_blocking=True)
        assert (moved.packing, moved.on_host.packing) == (None, ahead.packing)
        assert not waits


def test_workers_pack_for_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU reads a batch in chunks, which are packed each."""
    for kind, expected in (("cpu", None), ("cuda", inputs.pack_ahead)):
        for how, packs in ((ForwardPass(), True), (ForwardPass(tokens_at_once=64), False)):
            module: Any = LitPreference("testbed:policy", averaged_dpo(), forward_pass=how)
            data = SimpleNamespace(pack=None)
            strategy = SimpleNamespace(root_device=torch.device(kind))
            module._trainer = SimpleNamespace(strategy=strategy, datamodule=data)
            module.pack_in_workers(data)
            assert data.pack is (expected if packs else None)
