"""Every layout gives, for every architecture, what one sequence at a time gives in whole logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_align.compat.transformers import recompute_activations
from lit_align.models import response_log_probs
from lit_align.models.generation import sample_responses
from lit_align.models.logps.attention import NAME
from lit_align.models.logps.check import choose_layout
from lit_align.models.logps.log_probs import ForwardPass, LogProbReader
from lit_align.models.logps.packing import LayoutName
from lit_align.models.logps.plain import packed_mask
from lit_align.models.sampling import Sampling
from lit_align.types import PairBatch, PairLogProbs
from tests.conftest import pair_batch
from tests.models.architectures import (
    CONFIGS,
    GROUPED,
    NARROW,
    VOCABULARY,
    absent_sides,
    build,
    named,
    opened_batch,
    telling_batch,
)
from tests.models.lm_head.test_projection import TINY, Largest

LAYOUTS: list[LayoutName] = ["shared", "packed", "padded", "plain"]


def one_by_one(model: nn.Module, batch: PairBatch) -> PairLogProbs:
    """A sequence at a time, without padding, its softmax whole and in float64; with graph."""
    shape = (*batch.lengths.shape, int(batch.lengths.max()))
    found: list[list[Tensor]] = [[], []]
    for ids, attention, mask in zip(
        batch.input_ids.flatten(0, 1), batch.attention_mask.flatten(0, 1), batch.mask.flatten(0, 1), strict=True
    ):
        row, at = ids[attention].unsqueeze(0), mask[attention].nonzero().flatten()
        logs = model(input_ids=row).logits[0].double().log_softmax(-1)[at - 1]
        values = (logs.gather(1, row[0, at, None])[:, 0], (2 * logs).logsumexp(-1))
        for column, value in zip(found, values, strict=True):
            column.append(torch.cat([value, value.new_zeros(shape[-1] - len(at))]))
    stacked = [torch.stack(column).view(shape) for column in found]
    return PairLogProbs(stacked[0], None, packed_mask(batch), collision=stacked[1].detach())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


def slopes(values: Tensor) -> Tensor:
    made = torch.Generator().manual_seed(5)
    return torch.randn(values.shape, generator=made, dtype=torch.float64).to(values.dtype)


def assert_same(
    model: nn.Module, layout: LayoutName, batch: PairBatch, rounding: tuple[float, float], row_tokens: int = 0
) -> None:
    """Values, collisions and gradients, recomputed and fused."""
    truth = one_by_one(model, batch)
    weights = slopes(truth.policy)
    expected = gradients(model, (truth.policy * weights).sum())
    source = LogProbReader(model, ForwardPass(tile_mb=TINY, row_tokens=row_tokens))
    source.use(layout)
    found = source(batch, collision=True)
    records, losses = [found], [(found.policy * weights.to(found.policy.dtype)).sum()]
    if source.fuses:
        output = source.fused_loss(batch, lambda pairs, some: (some.policy * weights[pairs]).sum(), collision=True)
        assert not output.logps.policy.requires_grad
        wide = output.grad_logps.to(weights.dtype)
        torch.testing.assert_close(wide, torch.where(packed_mask(batch), weights, 0.0), rtol=1e-6, atol=1e-7)
        records, losses = [*records, output.logps], [*losses, output.loss]
    for one in records:
        for name in ("policy", "collision", "mask"):
            ours, value = getattr(one, name), getattr(truth, name)
            assert ours.shape == value.shape
            assert ours[~packed_mask(batch)].eq(0).all()
            torch.testing.assert_close(ours.double(), value.double(), rtol=rounding[0], atol=rounding[0])
    for loss in losses:
        ours = gradients(model, loss)
        assert ours.keys() == expected.keys()
        whole = max(float(gradient.norm()) for gradient in expected.values())
        for name, gradient in expected.items():
            assert float((ours[name] - gradient).norm()) <= rounding[1] * max(float(gradient.norm()), 1e-3 * whole), (
                name
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_loop(name: str, layout: LayoutName) -> None:
    """Float64, but for norms and expert layers, which transformers takes in float32."""
    assert_same(
        named(name), layout, telling_batch(), (2e-6, 2e-5) if name in (*NARROW, "gptj_eager") else (1e-6, 1e-5)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_prefix_of_all_pairs_is_read_once(name: str) -> None:
    assert_same(
        named(name), "shared", opened_batch(), (2e-6, 2e-5) if name in (*NARROW, "gptj_eager") else (1e-6, 1e-5)
    )


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("rows", [5, 6])
def test_responses_to_one_prompt_share_it(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one side, of which each two have a prompt in common; one is left over. Qwen2 takes the dense mask."""
    pairs = telling_batch()
    wide = {part: getattr(pairs, part).flatten(0, 1)[:rows, None] for part in ("input_ids", "attention_mask", "mask")}
    one, number = torch.ones(rows), torch.arange(rows)
    batch = PairBatch(**wide, truncated=torch.zeros(rows, 1, dtype=torch.bool), weight=one, index=number)
    model = named(name)
    if name == "qwen2":
        monkeypatch.setattr("lit_align.models.logps.reader.stands_in_for", lambda model, name: False)
    assert_same(model, "shared", batch, (1e-6, 1e-5))
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda layer, inputs, output: read.append(output.numel())
    )
    for share in ("shared", "packed"):
        reader = LogProbReader(model, ForwardPass(layout=share))  # type: ignore[arg-type]
        reader(batch)
    hook.remove()
    assert read[0] < read[1]


@pytest.mark.parametrize("row_tokens", [0, 40])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_dense_masks_say_the_same(
    layout: LayoutName, attention: str, row_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form that other devices and implementations get."""
    model = named("qwen2")
    model.set_attn_implementation(attention)
    monkeypatch.setattr("lit_align.models.logps.reader.stands_in_for", lambda model, name: False)
    assert_same(model, layout, telling_batch(), (1e-6, 1e-5), row_tokens)
    assert model.config._attn_implementation == attention


def by_ends(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **told: Any
) -> tuple[Tensor, None]:
    """Stands for FlashAttention where sequences of one row are told by their ends: one after the other."""
    assert mask is None
    assert told["cu_seq_lens_q"].dtype == torch.int32
    assert told["max_length_q"] == told["max_length_k"] == int(told["cu_seq_lens_k"].diff().max())
    sizes = told["cu_seq_lens_q"].diff().tolist()
    parts = zip(*(part.split(sizes, dim=2) for part in (query, key, value)), strict=True)
    found = [
        F.scaled_dot_product_attention(*part, is_causal=True, scale=told["scaling"], enable_gqa=True) for part in parts
    ]
    return torch.cat(found, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("batch", [telling_batch(), telling_batch().chosen_side()], ids=["pairs", "one side"])
def test_flash_attention_is_told_where_sequences_end(batch: PairBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    model = named("qwen2")
    truth = one_by_one(model, batch).policy
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", by_ends)
    model.config._attn_implementation = "flash_attention_2"
    source = LogProbReader(model)
    source.use("packed")
    torch.testing.assert_close(source(batch).policy, truth, rtol=1e-6, atol=1e-6)


LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
LORA_HEAD = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
SAVED_HEAD = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("config", [LORA, LORA_HEAD, SAVED_HEAD], ids=["layers", "head too", "head saved"])
@pytest.mark.parametrize("name", ["llama", "cohere_scale"])
def test_adapters(name: str, config: LoraConfig, layout: LayoutName) -> None:
    """On the layers, on the head (whose forward is then not linear), and with a head of its own."""
    model = get_peft_model(named(name), copy.deepcopy(config)).double().eval()
    assert_same(model, layout, telling_batch(), (1e-6, 1e-5))
    with model.disable_adapter():
        source = LogProbReader(model)
        source.use(layout)
        off = source(telling_batch()).policy
        torch.testing.assert_close(off, one_by_one(model, telling_batch()).policy, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32(layout: LayoutName) -> None:
    assert_same(build(CONFIGS["llama"](), torch.float32), layout, telling_batch(), (1e-5, 1e-4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_autocast(layout: LayoutName) -> None:
    """As near to float32 as the plain path under autocast is."""
    model, batch = build(CONFIGS["llama"](), torch.float32), telling_batch()
    exact = one_by_one(model, batch).policy
    source = LogProbReader(model)
    source.use(layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, found = response_log_probs(model, batch), source(batch).policy
        charged = source.fused_loss(batch, lambda pairs, some: some.policy.sum())
    assert found.dtype == torch.float32
    noise = float((plain - exact).detach().abs().max())
    assert 1e-4 < float((found - exact).detach().abs().max()) < 4 * noise
    torch.testing.assert_close(charged.logps.policy, found.detach())
    ours, truth = gradients(model, charged.loss), gradients(model, plain.sum())
    for name, gradient in truth.items():
        assert float((ours[name] - gradient).norm() / gradient.norm()) < 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing(layout: LayoutName) -> None:
    """A layer runs again in the backward pass, after other batches have been read."""
    model, batch = named("llama"), telling_batch()
    truth = gradients(model, one_by_one(model, batch).policy.sum())
    recompute_activations(model)
    model.train()
    source = LogProbReader(model)
    source.use(layout)
    loss = source(batch).policy.sum()
    with torch.no_grad():
        source(pair_batch([[3, 4]], [([5], [6, 7])]))
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, truth[name], rtol=1e-5, atol=1e-5)


def unscored_inside(batch: PairBatch) -> PairBatch:
    mask = batch.mask.clone()
    mask[0, :, 8] = False
    return replace(batch, mask=mask)


def other_prompts(batch: PairBatch) -> PairBatch:
    """The sides' prompts differ from the first token on."""
    ids = batch.input_ids.clone()
    ids[:, 1, 0] = 60
    return replace(batch, input_ids=ids)


KINDS: list[Callable[[PairBatch], PairBatch]] = [PairBatch.chosen_side, unscored_inside, other_prompts]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", KINDS, ids=lambda change: change.__name__)
def test_batches_of_all_kinds(change: Callable[[PairBatch], PairBatch], layout: LayoutName) -> None:
    assert_same(named("llama"), layout, change(telling_batch()), (1e-6, 1e-5))


@pytest.mark.parametrize("whole", [telling_batch(), opened_batch()], ids=["", "opened"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_absent_sides_are_zero(layout: LayoutName, whole: PairBatch) -> None:
    """The other values equal those of complete pairs."""
    model, batch = named("gpt2"), absent_sides(whole)
    source = LogProbReader(model)
    source.use(layout)
    found, truth = source(batch).policy, one_by_one(model, whole).policy
    mask = packed_mask(batch)
    width = mask.shape[-1]
    torch.testing.assert_close(found[mask], truth[..., :width][mask])
    assert found[~mask].eq(0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_without_scored_tokens(layout: LayoutName) -> None:
    model, batch = named("llama"), telling_batch()
    source = LogProbReader(model)
    source.use(layout)
    empty = replace(batch, mask=torch.zeros_like(batch.mask))
    assert source(empty).policy.shape == (5, 2, 0)
    charged = source.fused_loss(empty, lambda pairs, some: some.policy.sum())
    charged.loss.backward()
    assert float(charged.loss.detach()) == 0


def test_memory_does_not_grow_with_the_vocabulary_beyond_a_tile() -> None:
    """No tensor of the whole step is larger than the head, or than a tile of 16 rows of logits."""
    for vocabulary in (3_000, 12_000):
        config = hf.LlamaConfig(**GROUPED | {"vocab_size": vocabulary, "hidden_size": 8})
        model, batch = build(config, torch.float32), telling_batch()
        source = LogProbReader(model, ForwardPass(tile_mb=TINY))
        source.use("shared")
        with Largest(vocabulary) as seen:
            source.fused_loss(batch, lambda pairs, some: some.policy.sum()).loss.backward()
        assert seen.numel == 16 * vocabulary
        with Largest(vocabulary) as plain:
            response_log_probs(model, batch).sum().backward()
        assert plain.numel == batch.input_ids.numel() * vocabulary


def test_a_shared_prompt_is_read_once() -> None:
    """Tokens that enter the model: 100 of prompt once or twice, padding only where rows are padded."""
    batch = pair_batch([[7] * 100, [8] * 20], [([3, 4], [5, 6]), ([3, 4], [5, 6])])
    model = named("llama")
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, output: seen.append(given[0].numel()))
    source = LogProbReader(model)
    for layout in ("shared", "packed", "padded"):
        source.use(layout)
        source(batch)
    assert seen == [102 + 22, 2 * 101 + 2 * 21, 4 * 102]


def test_long_sequences_are_padded_beyond_the_reach() -> None:
    model, batch = named("llama"), telling_batch()
    source = LogProbReader(model)
    rows: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    source.use("shared", reach=15)
    source(batch)
    source.use("shared", reach=14)
    source(batch)
    assert rows == [1, 10]


def test_the_model_is_left_as_it_was() -> None:
    """Whole logits, sampled responses and saved settings equal those of an unpatched model."""
    model, untouched = named("llama"), named("llama")
    source = LogProbReader(model, ForwardPass(layout="shared"))
    source(telling_batch())
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    there = ids > 0
    assert model(input_ids=ids, attention_mask=there).logits.equal(
        untouched(input_ids=ids, attention_mask=there).logits
    )
    sampled = [
        sample_responses(one, [[3, 4], [5, 6, 7]], [2], 0, Sampling(max_new_tokens=5)) for one in (model, untouched)
    ]
    assert sampled[0] == sampled[1]
    assert model.config._attn_implementation == NAME
    assert NAME not in json.dumps(model.config.to_dict())
    source.use("padded")
    assert model.config._attn_implementation == untouched.config._attn_implementation == "sdpa"
    assert not model._forward_hooks
    assert "forward" not in vars(model.get_output_embeddings())


def test_the_head_comes_back_after_an_error() -> None:
    model = named("llama")
    source = LogProbReader(model)

    def fail(pairs: slice, some: PairLogProbs) -> Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        source.fused_loss(telling_batch(), fail)
    assert model(input_ids=torch.tensor([[3, 4]])).logits.shape == (1, 2, VOCABULARY)
    assert not model._forward_hooks


def test_a_copy_keeps_its_layout() -> None:
    """A reference that is copied from a policy in use reads plans as well, and goes back to what was loaded."""
    model = named("llama")
    LogProbReader(model, ForwardPass(layout="shared"))
    copied = LogProbReader(copy.deepcopy(model), ForwardPass(layout="shared"))
    torch.testing.assert_close(copied(telling_batch()).policy, one_by_one(model, telling_batch()).policy)
    copied.use("padded")
    assert copied.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("key", "value"), [("tile_mb", 0.0), ("row_tokens", -1)])
def test_sizes_are_checked(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"ForwardPass: {key} is {value}"):
        ForwardPass(**{key: value})


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("head_apart", [True, False], ids=["head apart", "head in root"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_models(layout: LayoutName, head_apart: bool) -> None:
    """Weights are gathered within the model's forward only, and gradients are reduced by its hooks."""
    model, batch = build(CONFIGS["llama"](), torch.float32), telling_batch()
    truth = one_by_one(model, batch).policy
    expected = gradients(model, truth.sum())
    mesh = init_device_mesh("cpu", (1,))
    parts = [*model.get_decoder().layers, *([model.lm_head] if head_apart else [])]
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    source = LogProbReader(model)
    source.use(layout)
    losses = (
        lambda: source(batch).policy.sum(),
        lambda: source.fused_loss(batch, lambda pairs, some: some.policy.sum()).loss,
    )
    for loss in losses * 2:
        model.zero_grad()  # before the forward pass, behind which the weights are whole
        value = loss()
        torch.testing.assert_close(value.double(), truth.sum(), rtol=1e-5, atol=1e-4)
        value.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad
            assert float((gradient.full_tensor() - expected[name]).norm() / expected[name].norm()) < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
def test_flash_attention_on_cuda() -> None:
    """Read every sequence by itself in bfloat16, the only dtype that the kernel supports."""
    config = CONFIGS["llama"]()
    config.head_dim = 16
    truth = one_by_one(build(config, torch.float32).cuda(), telling_batch().to("cuda")).policy
    model = build(config, torch.float32).cuda().bfloat16()
    model.set_attn_implementation("flash_attention_2")
    source = LogProbReader(model)
    choose_layout(source, telling_batch().to("cuda"))
    assert source.layout == "packed"
    torch.testing.assert_close(source(telling_batch().to("cuda")).policy.double(), truth, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_cuda(layout: LayoutName, attention: str) -> None:
    """Heads of 16 channels, which is what FlexAttention's kernels need at the least."""
    config = CONFIGS["llama"]()
    config.head_dim = 16
    truth = one_by_one(build(config, torch.float32).cuda(), telling_batch().to("cuda")).policy
    model = build(config, torch.float32).cuda()
    model.set_attn_implementation(attention)
    source = LogProbReader(model)
    source.use(layout)
    found = source(telling_batch().to("cuda")).policy
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-3)
    found.sum().backward()
