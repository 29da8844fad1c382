"""A folder with an adapter is its base model and the adapter, which is trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lit_align.locate import locate_model, tokenizer_source
from lit_align.models import AdapterOff, Loading, LoRA, Precomputed, SavedAdapter, SecondModel, load_causal_lm
from lit_align.models.adapters import adapter_of
from lit_align.models.loading import load_policy
from lit_align.models.reference.precomputed import model_identity
from lit_align.models.score_model import Value, load_score_model
from lit_align.models.scorer import RewardModel
from lit_align.modules import LitPreference, LitReward
from lit_align.objectives import dpo
from tests.conftest import tiny_llama

IDS = torch.arange(2, 22).view(2, 10)


def save_adapter(folder: Path, base: Path, seed: int = 0, dropout: float = 0.3, **settings: Any) -> Path:
    """Write what PEFT writes of an adapter that has been trained."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", base, task_type="CAUSAL_LM")


def change_config(folder: Path, **values: object) -> str:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return str(folder)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    values: Tensor = model(input_ids=IDS).logits
    return values


def test_the_policy_is_what_peft_loads_and_only_its_adapter_is_trained(base: Path, folder: Path) -> None:
    policy = load_policy(str(folder), Loading(), adapter_of(str(folder), None)).train()
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    assert not torch.allclose(logits(policy), logits(plain), atol=1e-2)
    torch.testing.assert_close(logits(policy), logits(PeftModel.from_pretrained(plain, str(folder)).eval()))
    names = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_" in name for name in names)


def test_a_copy_as_reference_keeps_the_adapter_and_shares_the_base(folder: Path) -> None:
    policy = load_policy(str(folder), Loading(), SavedAdapter(str(folder)))
    before = logits(policy)
    reference = SecondModel()
    reference.attach(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(1.0)
    with reference.active() as model:
        assert not any(weight.requires_grad for weight in model.parameters())
        assert torch.equal(logits(model), before)
        ours, theirs = dict(policy.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] is not theirs[name]} == {name for name in ours if "lora_" in name}
    assert not torch.equal(logits(policy), before)


def test_a_copy_of_a_policy_that_is_trained_whole_shares_nothing() -> None:
    policy, reference = tiny_llama(), SecondModel()
    reference.attach(policy)
    with reference.active() as model:
        assert not {id(weight) for weight in model.parameters()} & {id(weight) for weight in policy.parameters()}
    assert all(weight.requires_grad for weight in policy.parameters())


def test_the_reference_of_a_run_is_the_policy_as_loaded(base: Path, folder: Path) -> None:
    run = LitPreference(str(folder), dpo())
    assert isinstance(run.reference, SecondModel)
    assert run.reference.is_start
    other = SecondModel(str(base))
    assert LitPreference(str(folder), dpo(), reference=other).reference is other
    with pytest.raises(ValueError, match=rf"AdapterOff would be the base model {base}.*SecondModel with path"):
        LitPreference(str(folder), dpo(), reference=AdapterOff())


def test_a_folder_with_an_adapter_as_reference_is_read_with_it(folder: Path) -> None:
    policy = load_policy(str(folder), Loading(), SavedAdapter(str(folder)))
    reference = SecondModel(str(folder))
    reference.attach(policy)
    with reference.active() as model:
        assert not any(weight.requires_grad for weight in model.parameters())
        torch.testing.assert_close(logits(model), logits(policy))


def test_values_on_disk_are_those_of_one_adapter(base: Path, folder: Path, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", base, seed=1, task_type="CAUSAL_LM")
    scaled = Path(change_config(save_adapter(tmp_path / "scaled", base, task_type="CAUSAL_LM"), lora_alpha=4))
    identities = []
    for place in (folder, other, scaled):
        reference = Precomputed()
        reference.attach(load_policy(str(place), Loading(), SavedAdapter(str(place))))
        identities.append(reference.identity)
    again = model_identity(load_causal_lm(str(folder), Loading()))
    assert again == identities[0]
    whole = model_identity(load_causal_lm(str(base), Loading()))
    assert len({repr(identity) for identity in (*identities, whole)}) == 4


def test_a_base_beside_the_adapter_is_found(base: Path, folder: Path, tmp_path: Path) -> None:
    base.rename(folder / "base")
    assert locate_model(change_config(folder, base_model_name_or_path="base")) == str(folder / "base")
    assert tokenizer_source(str(folder)) == str(folder / "base")
    (folder / "tokenizer.json").touch()
    assert tokenizer_source(str(folder)) == str(folder)
    assert tokenizer_source("testbed:policy") == "testbed:policy"


BAD = {
    "base gone": (
        {"base_model_name_or_path": "/gone/model"},
        r"an adapter of /gone/model: model folder not found.*write",
    ),
    "base not named": ({"base_model_name_or_path": None}, "names no base model"),
    "hub": (
        {"base_model_name_or_path": "some/model"},
        r"an adapter of some/model: its config.json cannot be read.*on disk",
    ),
    "kind": ({"peft_type": "IA3", "feedforward_modules": []}, "of the type IA3"),
    "task": ({"task_type": "SEQ_CLS"}, r"made for SEQ_CLS; expected a LoRA adapter of a language model \(CAUSAL_LM\)"),
    "rank": ({"r": 3}, r"does not fit its base model .*size mismatch"),
    "layers": ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, r"does not fit its base model .*missing: .*k_proj"),
    "fewer layers": ({"target_modules": ["q_proj"]}, r"does not fit its base model .*unknown: .*v_proj"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_loaded_is_named(folder: Path, case: str) -> None:
    values, message = BAD[case]
    name = change_config(folder, **values)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_policy(name, Loading(), adapter_of(name, None))


def test_weights_that_are_missing_or_not_finite_are_refused(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    next(iter(saved.values()))[0, 0] = float("nan")
    save_file(saved, file)
    with pytest.raises(ValueError, match="not finite"):
        load_causal_lm(str(folder), Loading())
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
        load_causal_lm(str(folder), Loading())


def test_one_adapter_at_a_time(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds an adapter .*model.lora asks for a new one.*Leave model.lora out"):
        LitPreference(str(folder), dpo(), lora=LoRA(rank=2))
    stacked = save_adapter(tmp_path / "stacked", tmp_path / "base", task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="holds an adapter itself"):
        locate_model(change_config(stacked, base_model_name_or_path=str(folder)))
    with pytest.raises(ValueError, match=r"model.lora asks for a new one"):
        LitReward(str(folder), lora=LoRA(rank=2))


# ── reward models ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scoring(base: Path, tmp_path: Path) -> Path:
    """A reward model's adapter with its head, as PEFT writes it."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=8, task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(str(tmp_path / "scoring"))
    return tmp_path / "scoring"


@torch.no_grad()
def peft_scores(base: Path, folder: Path) -> Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    values: Tensor = PeftModel.from_pretrained(model, str(folder)).eval()(input_ids=IDS).logits[:, 0]
    return values


def last(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS)[:, -1]


def test_a_scorer_and_a_value_model_are_what_peft_loads(base: Path, scoring: Path) -> None:
    expected = peft_scores(base, scoring)
    scorer, value = RewardModel(str(scoring)), Value(str(scoring)).load("policy", Loading())
    scorer.load("policy")
    for model in (scorer.model, value):
        assert model is not None
        torch.testing.assert_close(last(model), expected)
    assert scorer.model is not None
    assert not any(weight.requires_grad for weight in scorer.model.parameters())
    assert all(weight.requires_grad and "lora" not in name for name, weight in value.named_parameters())
    assert not torch.allclose(last(load_score_model(str(base), Loading(), head="fresh")), expected, atol=1e-2)


def test_a_reward_models_adapter_is_trained_further_with_its_head(base: Path, scoring: Path) -> None:
    model = LitReward(str(scoring)).build_trained_model()
    torch.testing.assert_close(last(model), peft_scores(base, scoring))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_" in name or "score.modules_to_save" in name for name in names)
    assert sum("score" in name for name in names) == 1


def test_a_language_models_adapter_gets_a_head(base: Path, folder: Path, tmp_path: Path) -> None:
    """Its body is that of the adapted policy; what the adapter changes of the output head is left out."""
    wide = save_adapter(tmp_path / "wide", base, task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    with torch.no_grad():
        body = load_causal_lm(str(folder), Loading())(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    for place in (folder, wide):
        model = LitReward(str(place)).build_trained_model()
        head = load_score_model(str(base), Loading(), head="fresh").model.score.weight
        torch.testing.assert_close(last(model), (body @ head.T)[:, -1, 0])
    value = Value().load(str(folder), Loading())
    assert not last(value).any()
    torch.nn.init.constant_(value.model.score.weight, 0.5)
    torch.testing.assert_close(last(value), 0.5 * body[:, -1].sum(-1))
    with pytest.raises(ValueError, match=r"adapter is no reward model: it has no score head"):
        load_score_model(str(folder), Loading())


def test_a_head_of_several_labels_is_refused(base: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    config = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(str(tmp_path / "three"))
    with pytest.raises(ValueError, match=r"three does not fit its base model .*score"):
        load_score_model(str(tmp_path / "three"), Loading())
