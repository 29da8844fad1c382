"""Models are loaded completely from the place that the user names, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from lit_align.locate import locate_model
from lit_align.models import Loading, load_causal_lm
from lit_align.models.loading import attention_for
from lit_align.models.score_model import load_score_model
from tests.conftest import tiny_llama
from tests.models.architectures import CONFIGS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change: object) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)  # type: ignore[operator]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_gives_its_weights_in_float32_and_evaluation_mode(folder: Path) -> None:
    model = load_causal_lm(str(folder), Loading())
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight.equal(tiny_llama().lm_head.weight)


def test_dtype_is_the_one_asked_for_not_the_checkpoint_s(tmp_path: Path) -> None:
    tiny_llama().bfloat16().save_pretrained(tmp_path)
    assert load_causal_lm(str(tmp_path), Loading()).dtype == torch.float32
    assert load_causal_lm(str(tmp_path), Loading(dtype="bfloat16")).dtype == torch.bfloat16


def test_random_weights_need_the_configuration_alone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first, again, other = (load_causal_lm(str(folder), Loading(weights="random", seed=seed)) for seed in (0, 0, 1))
    assert first.lm_head.weight.equal(again.lm_head.weight)
    assert not first.lm_head.weight.equal(other.lm_head.weight)


@pytest.mark.fault("B20")
def test_dropout_is_off(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    model = load_causal_lm(str(tmp_path), Loading()).train()
    ids = torch.tensor([[1, 2, 3]])
    assert model(ids).logits.equal(model(ids).logits)
    control = AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert not control(ids).logits.equal(control(ids).logits)


def test_gradient_checkpointing_changes_no_number(folder: Path) -> None:
    ids = torch.tensor([[1, 5, 6, 7]])
    gradients = []
    for flag in (False, True):
        with warnings.catch_warnings(action="error", category=FutureWarning):  # of a method's old name
            model = load_causal_lm(str(folder), Loading(gradient_checkpointing=flag)).train()
        model(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.fault("B18")
@pytest.mark.parametrize("name", ["./nowhere", "out/of/depth", "nowhere", "/nowhere/model"])
@pytest.mark.security(10)
def test_a_missing_folder_is_not_looked_up_on_a_hub(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="model folder not found"):
        load_causal_lm(name, Loading())


def test_a_path_under_a_folder_of_this_place_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError, match="out/model"):
        locate_model("out/model")
    assert locate_model("EleutherAI/pythia-410m") == "EleutherAI/pythia-410m"


@pytest.mark.fault("B18c")
def test_a_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing in"):
        load_causal_lm(str(tmp_path), Loading())


@pytest.mark.fault("B19")
def test_weights_cut_short_name_the_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors \(100 bytes\)"):
        load_causal_lm(str(folder), Loading())


@pytest.mark.fault("B19b")
def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"do not fill the model.*model\.norm\.weight"):
        load_causal_lm(str(folder), Loading())


def test_a_tensor_that_the_config_does_not_know_is_named(folder: Path) -> None:
    """A layer beyond those of config.json would be ignored silently."""
    rewrite(folder, lambda weights: weights.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}))
    with pytest.raises(ValueError, match=r"does not have: model\.layers\.9\.mlp\.up_proj\.weight; expected"):
        load_causal_lm(str(folder), Loading())
    with pytest.raises(ValueError, match=r"does not have: model\.layers\.9\.mlp\.up_proj\.weight; expected"):
        load_score_model(str(folder), Loading(), head="fresh")


@pytest.mark.fault("B09", "B10")
def test_a_weight_that_is_not_finite(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(ValueError, match=r"model\.norm\.weight has values that are not finite"):
        load_causal_lm(str(folder), Loading())


@pytest.mark.parametrize("load", [load_causal_lm, lambda name, how: load_score_model(name, how, head="fresh")])
def test_an_end_token_that_pads_as_well_is_trained(tmp_path: Path, load: Callable[[str, Loading], Any]) -> None:
    """Its row of the embedding would get no gradient: transformers names it as ``padding_idx``."""
    model = tiny_llama()
    model.config.pad_token_id = model.config.eos_token_id
    model.save_pretrained(tmp_path)
    control = AutoModelForCausalLM.from_pretrained(tmp_path)
    for other, trained in ((load(str(tmp_path), Loading()), True), (control, False)):
        output = other(input_ids=torch.tensor([[1, 5, 2, 7, 8]]))
        (output if isinstance(output, torch.Tensor) else output.logits).square().sum().backward()
        weight = next(weight for name, weight in other.named_parameters() if name.endswith("embed_tokens.weight"))
        assert weight.grad is not None
        assert bool(weight.grad[2].any()) == trained


def test_a_soft_cap_of_attention_is_not_lost(tmp_path: Path) -> None:
    """The oldest supported transformers drops the cap under sdpa; the logits are then off by more than 1."""
    config = CONFIGS["gemma2_window_caps"]()
    config.save_pretrained(tmp_path)
    model: Any = load_causal_lm(str(tmp_path), Loading(weights="random"))
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"loading.attention is sdpa, which leaves out the soft cap of gemma2"):
        load_causal_lm(str(tmp_path), Loading(weights="random", attention="sdpa"))
    assert attention_for(config, "flex_attention") == "flex_attention"
    assert attention_for(LlamaConfig(), None) is None
