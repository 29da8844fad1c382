"""Kernels of variable length get the sequences that segments compute; a loop stands in for the kernel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lit_align.compat.transformers import recompute_activations
from lit_align.models.logps import varlen
from lit_align.models.logps.attention import NAME, causal_mask
from lit_align.models.logps.log_probs import LogProbReader
from lit_align.models.logps.packing import LayoutName, common_prefix, pack, shared_tokens
from lit_align.models.logps.plain import response_log_probs
from lit_align.models.logps.varlen import Sequences
from lit_align.types import PairBatch
from tests.models.architectures import CONFIGS, absent_sides, build, named, opened_batch, telling_batch


def by_sequence(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
    """Compute what a kernel does: each sequence by itself, causal from the bottom right."""
    ends = (sequences.query_ends, sequences.key_ends, sequences.key_ends)
    for part, last in zip((query, key, value), ends, strict=True):
        assert (last[0], last[-1]) == (0, len(part))
    sizes = [last.diff().tolist() for last in ends]
    assert max(sizes[1]) == sequences.longest
    window, scale = sequences.window, sequences.scale
    outputs = []
    for parts in zip(*(part.split(size) for part, size in zip((query, key, value), sizes, strict=True)), strict=True):
        queries, keys, values = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        mask = causal_mask(queries.shape[2], keys.shape[2], window, query.device)
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop take the place of the kernel, in any precision and with heads of any size."""
    monkeypatch.setattr(varlen, "kernel", lambda: by_sequence)
    monkeypatch.setattr("lit_align.models.logps.paths.varlen_obstacle", lambda *_: None)


@pytest.mark.parametrize(
    "batch", [telling_batch(), opened_batch(), absent_sides(opened_batch())], ids=["pairs", "opened", "absent"]
)
@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("name", ["llama", "mistral_window"])
@pytest.mark.usefixtures("kernel")
def test_log_probs_and_gradients_are_those_of_padded_rows(name: str, layout: LayoutName, batch: PairBatch) -> None:
    """Grouped queries, windows, common prefixes, absent sides and identical pairs; also checkpointed layers."""
    model: Any = named(name)
    recompute_activations(model)
    model.train()
    reader = LogProbReader(model, rehearsed=True)
    reader.use(layout)
    assert model.config._attn_implementation == NAME
    assert reader.path(torch.device("cpu"))[0] == "varlen"
    values = reader(batch).policy
    values.sin().sum().backward()
    found = [values.detach(), *(weight.grad for weight in model.parameters())]
    reader.use("plain")
    model.zero_grad()
    truth = response_log_probs(model, batch)
    truth.sin().sum().backward()
    expected = [truth.detach(), *(weight.grad for weight in model.parameters())]
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    for one, other in zip(found, expected, strict=True):  # norms are in float32, and see summed gradients
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_plan_by_hand() -> None:
    """Two pairs behind a prefix: ends of queries, ends of keys, and places of keys; only these are stored."""
    batch = opened_batch()
    packing = pack(batch, shared_tokens(batch), common_prefix(batch))
    plan = varlen.varlen_plan(packing)
    query_ends, key_ends = plan.numbers[: 2 * (plan.count + 1)].view(2, -1)
    places = plan.numbers[2 * (plan.count + 1) :]
    mask = plan.as_mask()
    assert mask.shape == (1, plan.longest, plan.count, len(plan.numbers))
    assert mask.untyped_storage().nbytes() == 4 * len(plan.numbers)
    assert len(places) == key_ends[-1]
    assert query_ends[-1] == len(packing.ids)
    assert key_ends.diff().max() == plan.longest
    first, second, shared = packing.segments[0].tolist()
    prefix = list(range(20))
    own = list(range(20, 20 + first))
    rest = list(range(20 + first, 20 + first + second))
    assert query_ends[:4].tolist() == [0, 20, 20 + first, 20 + first + second]
    assert places[: key_ends[3]].tolist() == [*prefix, *prefix, *own, *prefix, *own[:shared], *rest]
    for start, end in zip(key_ends[:-1], key_ends[1:], strict=True):  # every sequence is one from its beginning on
        assert packing.positions[places[start:end]].tolist() == list(range(end - start))


@pytest.mark.parametrize("option", ["softcap", "s_aux", "position_bias", "dropout"])
def test_what_the_kernels_do_not_know_is_refused(option: str) -> None:
    batch = telling_batch()
    plan = varlen.varlen_plan(pack(batch, shared_tokens(batch))).as_mask()
    with pytest.raises(NotImplementedError, match=f"knows no {option}"):
        varlen.varlen_attention(*[torch.zeros(1, 2, 9, 4)] * 3, plan, **{option: 0.5})


def test_rotated_queries_are_narrowed_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions leave float32 behind, which the kernels do not compute in."""
    dtypes: list[torch.dtype] = []

    def seen(query: Tensor, key: Tensor, value: Tensor, sequences: Sequences) -> Tensor:
        dtypes.extend(part.dtype for part in (query, key, value))
        return by_sequence(query, key, value, sequences)

    monkeypatch.setattr(varlen, "kernel", lambda: seen)
    reader = LogProbReader(build(CONFIGS["llama"](), torch.float32), rehearsed=True)
    reader.use("shared")
    with torch.autocast("cpu", torch.bfloat16):
        assert reader.path(torch.device("cpu"))[0] == "varlen"
        reader(telling_batch())
    assert set(dtypes) == {torch.bfloat16}
    assert reader.path(torch.device("cpu"))[0] == "dense"  # in float32, with heads too small for FlexAttention


def test_the_kernel_of_pytorch_is_called_as_its_signature_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of the right shape on the meta device; grouped keys are repeated for a version that knows no groups."""
    query, key = torch.zeros(9, 4, 8, device="meta"), torch.zeros(12, 2, 8, device="meta")
    ends = [torch.tensor(numbers, dtype=torch.int32, device="meta") for numbers in ([0, 6, 9], [0, 6, 12])]
    assert varlen._torch_kernel(query, key, key, Sequences(*ends, 6, 0.5)).shape == query.shape
    calls: list[dict[str, Any]] = []

    def oldest(query: Tensor, key: Tensor, *given: Any, scale: Any = None, window_size: Any = (-1, -1)) -> Tensor:
        calls.append({"heads": key.shape[1], "window": window_size, "longest": given[-2:]})
        return varlen_attn(query, key, *given, scale=scale, window_size=window_size)  # type: ignore[return-value]

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", oldest)
    assert varlen._torch_kernel(query, key, key, Sequences(*ends, 6, 0.5, 6)).shape == query.shape
    assert calls == [{"heads": 4, "window": (5, 0), "longest": (6, 6)}]


def test_flash_attn_serves_where_pytorch_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    varlen.kernel.cache_clear()
    assert varlen.kernel() is varlen._flash_attn_kernel
    varlen.kernel.cache_clear()
    reason = varlen.varlen_obstacle(torch.bfloat16, 64, rehearsed=False)
    assert reason is not None
    assert "flash-attn is not installed" in reason
    calls: list[Any] = []
    module = SimpleNamespace(
        flash_attn_varlen_func=lambda *given, **options: calls.append((given, options)) or given[0]
    )
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", module)
    states, ends = torch.zeros(3, 2, 8), torch.tensor([0, 3], dtype=torch.int32)
    varlen._flash_attn_kernel(states, states, states, Sequences(ends, ends, 3, 0.5, 4))
    ((given, options),) = calls
    assert given[3:] == (ends, ends, 3, 3)
    assert options == {"softmax_scale": 0.5, "causal": True, "window_size": (3, 0)}
