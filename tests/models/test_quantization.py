"""Weights in 4 and 8 bits: what is refused, how they are counted, and, where bitsandbytes is there, what they give."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lit_align.callbacks.export import _on_cpu, quantization_note
from lit_align.cli.settings import check_packages
from lit_align.models import AdapterOff, Loading, LoRA, SecondModel, load_causal_lm, load_policy
from lit_align.models.adapters import merge
from lit_align.models.export import read_back, token_log_probs
from lit_align.models.quantization import (
    Quantization,
    _CodesTimesInputs,
    count_weights,
    is_quantized,
    quantized_layers,
    stored_bytes,
)
from lit_align.models.reference.precomputed import model_identity
from lit_align.models.score_model import Value, load_trained_score_model
from lit_align.models.sharding import shard, without_weights
from lit_align.modules import LitPreference
from lit_align.objectives import dpo
from lit_align.plan import Parallelism, estimate, uniform_batch
from tests.conftest import tiny_llama
from tests.runner import BASE, QUIET, lit_align, ok, weights

INSTALLED = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not INSTALLED, reason="needs bitsandbytes")
KINDS: tuple[Quantization, ...] = ("nf4", "int8")
IDS = [[*range(2, 22)], [*range(2, 12), *range(20, 30)]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_llama().save_pretrained(folder)
    return str(folder)


# ── without bitsandbytes ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("load", [load_policy, load_trained_score_model])
def test_quantized_weights_are_not_trained(base: str, load: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^model.loading.quantization is nf4, and quantized weights cannot be trained"
    ):
        load(base, Loading(quantization="nf4"), None)
    with pytest.raises(ValueError, match=r"^model.value.loading.quantization is int8"):
        Value(loading=Loading(quantization="int8"))


def test_a_run_without_adapter_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    words = (
        "fit",
        "--run",
        tmp_path / "run",
        *BASE,
        *QUIET,
        "--data.train",
        "no-such.jsonl",
        "--data.validation",
        "no",
    )
    ended = lit_align(*words, "--model.objective", "dpo", "--model.loading.quantization", "nf4")
    assert ended.code == 2
    assert "model.loading.quantization is nf4, and quantized weights cannot be trained" in ended.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("setting", "other"), [("weights", "random"), ("dtype", "float64")])
def test_settings_that_exclude_each_other(setting: str, other: str) -> None:
    with pytest.raises(ValueError, match=rf"quantization is nf4, and loading.{setting} (are|is) {other}; expected"):
        Loading(**{setting: other}, quantization="nf4")  # type: ignore[arg-type]


@pytest.mark.skipif(INSTALLED, reason="bitsandbytes is there")
def test_a_missing_package_is_named_with_its_key_and_the_command(base: str) -> None:
    reference = Namespace(class_path="SecondModel", init_args=Namespace(loading=Namespace(quantization="int8")))
    message = r"is int8, which needs bitsandbytes: pip install 'lit-align\[quantization\]'$"
    with pytest.raises(ValueError, match=rf"^model.reference.init_args.loading.quantization {message}"):
        check_packages(Namespace(policy="x", loading=Namespace(quantization=None), reference=reference))
    with pytest.raises(ValueError, match=rf"^loading.quantization {message}"):
        load_causal_lm(base, Loading(quantization="int8"))


def test_weights_that_are_quantized_on_disk_are_refused(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"config.json says that the weights are quantized \(gptq\); expected whole"):
        load_causal_lm(str(tmp_path), Loading())


def test_quantized_weights_are_not_sharded(base: str) -> None:
    with without_weights():
        model = load_policy(base, Loading(quantization="nf4"), LoRA())
    with pytest.raises(ValueError, match=r"quantization with trainer.strategy fsdp: quantized weights are not shar"):
        shard(model, object.__new__(DeviceMesh))


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
def test_a_plan_counts_the_bits_of_the_layers_and_one_whole_layer(base: str, kind: Any) -> None:
    """Four projections of 16 x 16 and three of 16 x 32 in each of two layers, and their scales."""
    plain, packed = (
        estimate(LitPreference(base, dpo(), loading=loading, lora=LoRA(2)), uniform_batch(2, 20, 12), CPU)
        for loading in (Loading(), Loading(quantization=kind))
    )
    layers = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    saved = plain.memory.parameters - packed.memory.parameters
    scales = 2 * (5 * 16 + 2 * 32) * 4 if kind == "int8" else 2 * (4 * (4 + 4) + 3 * (8 + 4))
    assert saved == layers * 4 - (layers * (8 if kind == "int8" else 4) // 8 + scales)
    whole = 16 * 32 * (8 if kind == "int8" else 4)
    assert packed.phases["forward"].working == plain.phases["forward"].working + whole
    assert (packed.trained, packed.parameters) == (plain.trained, plain.parameters)


CPU = Parallelism(device="cpu")


def test_eight_bit_products_have_the_gradient_of_whole_weights() -> None:
    codes, scale = torch.randint(-127, 128, (6, 4), dtype=torch.int8), torch.rand(6) + 0.5
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    product: Any = _CodesTimesInputs
    outputs = product.apply(inputs, codes, scale)
    weight = (codes.float() * (scale / 127)[:, None]).double()
    torch.testing.assert_close(outputs, inputs @ weight.T)
    torch.testing.assert_close(torch.autograd.grad(outputs.sum(), inputs)[0], weight.sum(0).expand(3, -1))


def test_the_card_says_how_to_load_the_base() -> None:
    loading = Loading(dtype="bfloat16", quantization="nf4")
    note = quantization_note(loading, "adapter")
    assert "bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)`" in note
    assert "`load_in_8bit` of transformers rounds" in quantization_note(
        replace(loading, quantization="int8"), "adapter"
    )
    assert "dequantized, with the adapter, in bfloat16" in quantization_note(loading, "merged")


# ── with bitsandbytes ───────────────────────────────────────────────────────────────────────────────────────────────


def trained(base: str, kind: Quantization, dtype: Any = "float32") -> PeftModel:
    """Return a policy whose adapter has been changed."""
    model = load_policy(base, Loading(dtype=dtype, quantization=kind), LoRA(4))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.1)
    assert isinstance(model, PeftModel)
    return model


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_the_layers_that_are_counted_are_those_that_are_quantized(base: str, kind: Quantization) -> None:
    model = load_policy(base, Loading(quantization=kind), LoRA(4))
    with without_weights():
        planned = load_policy(base, Loading(quantization=kind), LoRA(4))
    assert {type(layer.weight).__name__ for layer in quantized_layers(model)} == {
        "Params4bit" if kind == "nf4" else "Int8Params"
    }
    assert len(list(quantized_layers(model))) == 14
    parts = [weight for layer in quantized_layers(model) for weight in packed_scales(layer.weight)]
    scales = sum(part.nbytes for part in parts)
    assert stored_bytes(planned) == sum(weight.nbytes for weight in model.parameters()) + scales
    assert sum(map(count_weights, model.parameters())) == sum(weight.numel() for weight in planned.parameters())


def packed_scales(weight: Any) -> list[torch.Tensor]:
    if type(weight).__name__ == "Int8Params":
        return [weight.SCB]
    return [weight.quant_state.absmax, weight.quant_state.state2.absmax]


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_is_the_same_whatever_is_beside_it(base: str, kind: Quantization) -> None:
    """Also where activations are large, from which LLM.int8() takes whole columns."""
    model = load_causal_lm(base, Loading(quantization=kind))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(40)
        rows = torch.tensor(IDS)
        both, alone = model(rows).logits, model(rows[:1]).logits
    torch.testing.assert_close(both[0], alone[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[1, :10], alone[0, :10], rtol=1e-5, atol=1e-5)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_weights_give_the_trained_model(base: str, kind: Quantization, dtype: Any, tmp_path: Path) -> None:
    model = trained(base, kind, dtype)
    expected = token_log_probs(model, IDS)
    merge(_on_cpu(model)).save_pretrained(tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == dtype
    (values,) = read_back(tmp_path / "merged", IDS, None)
    assert float((values - expected).abs().max()) < (1e-4 if dtype == "float32" else 0.2)
    torch.testing.assert_close(token_log_probs(model, IDS), expected)  # the copy was merged
    model.save_pretrained(str(tmp_path / "adapter"))
    (values,) = read_back(tmp_path / "adapter", IDS, (base, Loading(dtype=dtype, quantization=kind)))
    torch.testing.assert_close(values, expected)


@needs_bitsandbytes
def test_transposed_layers_are_merged_as_they_are_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=64, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path
    )
    model = trained(str(tmp_path), "nf4")
    expected = token_log_probs(model, IDS)
    merge(model).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        token_log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), IDS), expected
    )


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_model_keeps_its_head_whole(base: str, kind: Quantization, tmp_path: Path) -> None:
    model = load_trained_score_model(base, Loading(quantization=kind), LoRA(4))
    assert not any(is_quantized(weight) for name, weight in model.named_parameters() if "score" in name)
    rows = torch.tensor(IDS)
    expected = model.eval()(input_ids=rows)
    inner: Any = model.model
    merged: Any = merge(inner)
    merged.save_pretrained(tmp_path)
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(saved.score(saved.model(rows)[0])[..., 0], expected, rtol=1e-4, atol=1e-4)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_reference_is_quantized_by_itself(base: str, kind: Quantization) -> None:
    policy = load_policy(base, Loading(), None)
    reference = SecondModel(base, Loading(quantization=kind))
    reference.attach(policy)
    with reference.active() as model:
        assert len(list(quantized_layers(model))) == 14
        assert not list(quantized_layers(policy))
        identity = model_identity(model)
    assert "bitsandbytes" in identity["libraries"]
    assert identity["weights"] != model_identity(policy)["weights"]
    json.dumps(identity)


@needs_bitsandbytes
def test_a_weight_that_is_not_finite_is_found_by_its_scales(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 2] = torch.inf
    model.save_pretrained(tmp_path)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"up_proj.weight has values that are not finite"):
            load_causal_lm(str(tmp_path), Loading(quantization=kind))


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_an_adapted_policy_shares_its_weights(base: str, kind: Quantization) -> None:
    policy = trained(base, kind)
    reference = SecondModel()
    reference.attach(policy)
    off = AdapterOff()
    off.attach(policy)
    with reference.active() as model, torch.no_grad():
        assert {id(layer.weight) for layer in quantized_layers(model)} == {
            id(layer.weight) for layer in quantized_layers(policy)
        }
        torch.testing.assert_close(token_log_probs(model, IDS), token_log_probs(policy, IDS))


ONLINE = (
    *("--task", "online", "--model.objective", "kl_rlhf", "--model.score", "KnownScore"),
    *("--model.score.score", "TestbedScore", "--model.sampling.max_new_tokens", "8"),
)


@needs_bitsandbytes
@pytest.mark.resume("quantized weights")
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("nf4", ("--model.objective", "dpo", "--model.loading.gradient_checkpointing", "true")),
        ("int8", ("--task", "reward")),
        ("nf4", ONLINE),
    ],
    ids=["dpo", "reward", "online"],
)
def test_a_run_resumes_to_the_bit_and_is_exported(
    rows: Path, tmp_path: Path, kind: str, more: tuple[str, ...]
) -> None:
    quantized = ("--model.loading.quantization", kind, "--model.lora.rank", 4, "--trainer.max_steps", 3, *more)
    data = ("--data.train", rows, "--data.validation", rows, "--data.batch_size", 4, "--samples.count", 0)
    settings = (*BASE, *QUIET, *data, *quantized, "--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ok(lit_align("fit", "--run", whole, *settings))
    ok(lit_align("fit", "--run", parts, *settings, "--ckpt_path", whole / "checkpoints" / "step=2.ckpt"))
    expected, resumed = weights(whole), weights(parts)
    assert expected.keys() == resumed.keys()
    assert all("lora" in name or "score" in name or name.startswith("value_model.") for name in expected)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    card = (whole / ("reward_model" if "reward" in more else "policy") / "README.md").read_text()
    assert f"the linear layers of the base model were {kind} in training; here they are dequantized" in card
