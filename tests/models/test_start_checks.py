"""Models whose numbers depend on chance, on their mode or on later tokens are refused before they are trained."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
    PretrainedConfig,
    RwkvConfig,
)

from lit_align.data.text.tokenizer import load_tokenizer
from lit_align.models import Loading, LoRA, load_causal_lm
from lit_align.models.score_model import load_score_model
from lit_align.models.start_checks import check_causal, check_training_mode, without_gradient
from lit_align.modules import LitPreference
from lit_align.objectives import dpo
from tests.conftest import tiny_llama
from tests.runner import BASE, SHORT, distributed, lit_align, metrics, ok

SEQUENCES = [[1, 5, 6, 7, 8, 9, 10, 11, 12, 2], [1, 5, 6, 7, 8, 9, 10, 13, 2]]
SIZES = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = SIZES | IDS | {"num_attention_heads": 2}
EXPERTS = HEADS | {"num_key_value_heads": 2, "num_local_experts": 4}


def saved(config: PretrainedConfig, folder: Path) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    return str(folder)


CAUSAL: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**HEADS),
    "llama with dropout": lambda: LlamaConfig(**HEADS, attention_dropout=0.5),
    "mixtral": lambda: MixtralConfig(**EXPERTS, router_jitter_noise=0.1),
    "opt": lambda: OPTConfig(
        **IDS, vocab_size=31, hidden_size=16, ffn_dim=16, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=16, layerdrop=0.5, dropout=0.5,
    ),
    "mamba": lambda: MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=2, state_size=4),
    "rwkv": lambda: RwkvConfig(vocab_size=31, hidden_size=16, attention_hidden_size=16, num_hidden_layers=2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models_without_noise_pass(kind: str, tmp_path: Path) -> None:
    """Noise that has a setting in the configuration is switched off, even if it is not dropout."""
    model = load_causal_lm(saved(CAUSAL[kind](), tmp_path), Loading())
    check_causal(model, "model.policy x", SEQUENCES)
    check_training_mode(model, "model.policy x", SEQUENCES)


def test_a_score_model_and_one_with_an_adapter_pass(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    adapted = LoRA(rank=2, dropout=0.5).wrap(load_causal_lm(str(tmp_path), Loading())).train()
    for model in (load_score_model(str(tmp_path), Loading(), head="fresh"), adapted):
        check_causal(model, "x", SEQUENCES)
        check_training_mode(model, "x", SEQUENCES)
    assert all(part.training for part in adapted.modules())


def test_a_model_that_sees_what_comes_later(tmp_path: Path) -> None:
    model = load_causal_lm(saved(BertConfig(**HEADS), tmp_path), Loading())
    with pytest.raises(ValueError, match=r"model.policy x \(bert\) is not causal: tokens that come later change"):
        check_causal(model, "model.policy x", SEQUENCES)


def test_experts_that_are_drawn(tmp_path: Path) -> None:
    """Without jitter PhiMoE draws among one expert; with what no name switches off it is refused."""
    model: Any = load_causal_lm(saved(PhimoeConfig(**EXPERTS), tmp_path), Loading())
    check_training_mode(model, "x", SEQUENCES)
    for layer in model.model.layers:
        layer.mlp.router.router_jitter_noise = 0.1
    check_causal(model, "x", SEQUENCES)
    with pytest.raises(ValueError, match=r"x \(phimoe\) draws random numbers in training mode beside dropout"):
        check_training_mode(model, "x", SEQUENCES)


class Rare(nn.Module):
    """Noise that half of the passes show, from any generator."""

    def __init__(self, source: Callable[[], float]) -> None:
        super().__init__()
        self.source = source

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values + 1 if self.training and self.source() < 0.5 else values


@pytest.mark.parametrize("source", [random.random, np.random.rand, lambda: float(torch.rand(()))], ids=["p", "n", "t"])
def test_rare_noise_is_seen_and_generators_stay(source: Callable[[], float]) -> None:
    model = tiny_llama()
    model.model.norm = nn.Sequential(model.model.norm, Rare(source)).eval()
    states = (repr(np.random.get_state()), torch.random.get_rng_state().tolist())  # type checks draw from random's
    with pytest.raises(ValueError, match="draws random numbers in training mode"):
        check_training_mode(model, "x", SEQUENCES)
    assert states == (repr(np.random.get_state()), torch.random.get_rng_state().tolist())
    assert not any(part.training for part in model.modules())


class OtherMode(nn.Module):
    """Another number in training mode, the same one each time."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * 1.1 if self.training else values


def test_a_mode_that_matters() -> None:
    model = tiny_llama()
    model.lm_head = nn.Sequential(model.lm_head, OtherMode())
    with pytest.raises(ValueError, match=r"gives other numbers in training mode than in evaluation mode"):
        check_training_mode(model, "x", SEQUENCES)


def test_dropout_that_no_configuration_names_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llama().save_pretrained(tmp_path)
    build = AutoModelForCausalLM.from_pretrained

    def with_dropout(*args: object, **options: object) -> object:
        model, report = build(*args, **options)
        model.model.norm = nn.Sequential(model.model.norm, nn.Dropout(0.5))
        return model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", with_dropout)
    check_training_mode(load_causal_lm(str(tmp_path), Loading()), "x", SEQUENCES)


@pytest.mark.representative
@pytest.mark.parametrize("task", ["preference", "reward", "online", "validate", "predict"])
def test_every_task_checks_its_model_at_the_start(
    rows: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, before the first step; an evaluation needs a causal model too."""
    tokenizer = load_tokenizer("testbed:policy")
    size = HEADS | {"vocab_size": len(tokenizer)}
    evaluates = task in ("validate", "predict")
    folder = saved(BertConfig(**size) if evaluates else PhimoeConfig(**(EXPERTS | size)), tmp_path / "model")
    monkeypatch.setattr("lit_align.models.loading.NOISE", re.compile("nothing"))
    tokenizer.save_pretrained(folder)
    words = {
        "preference": ("fit", "--model.objective", "dpo"),
        "reward": ("fit", "--task", "reward"),
        "online": ("fit", "--task", "online", "--model.objective", "kl_rlhf", "--model.objective.advantage",
                   "LeaveOneOut", "--model.responses", 2, "--model.score", "KnownScore", "--model.score.score",
                   "TestbedScore"),
        "validate": ("validate", "--model.objective", "dpo", "--data.validation", rows),
        "predict": ("predict", "--model.objective", "dpo", "--data.predict", rows),
    }[task]  # fmt: skip
    ended = lit_align(*words, *BASE, *SHORT, "--model.policy", folder, "--data.train", rows, "--run", tmp_path / "run")
    assert ended.code == 2, ended.out
    assert ("is not causal" if evaluates else "draws random numbers") in ended.out
    assert "Traceback" not in ended.out


# ── weights without a gradient ──────────────────────────────────────────────────────────────────────────────────────


def vision_language(vocabulary: int = 31) -> PretrainedConfig:
    text = HEADS | {"vocab_size": vocabulary, "num_key_value_heads": 1, "head_dim": 8}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return Gemma3Config(
        text_config=text,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=vocabulary - 1,
        tie_word_embeddings=True,
        **IDS,
    )


def test_what_texts_do_not_reach_is_not_trained(tmp_path: Path) -> None:
    run = LitPreference(saved(vision_language(), tmp_path), dpo())
    with pytest.warns(
        UserWarning, match=r"gemma3: \d+ weights that texts do not reach are not trained: .*vision_tower"
    ):
        run.configure_model()
    frozen = {name for name, weight in run.policy.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name in dict(run.policy.named_parameters()) if "language_model" not in name}


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_weight_of_a_language_model_is_reached(kind: str, tmp_path: Path) -> None:
    model = load_causal_lm(saved(CAUSAL[kind](), tmp_path), Loading(gradient_checkpointing=kind == "llama"))
    assert without_gradient(model) == ([], [])
    if kind == "llama":
        assert without_gradient(LoRA(rank=2).wrap(model)) == ([], [])


def test_experts_that_get_no_token_are_told_from_parts_that_no_text_reaches() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 4)
            self.experts = nn.ModuleList([nn.ModuleDict({"up": nn.Linear(4, 4)}) for _ in range(3)])
            self.tower = nn.ModuleList([nn.Linear(4, 4)])
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input_ids: torch.Tensor, **options: object) -> torch.Tensor:
            values: torch.Tensor = self.experts[1]["up"](self.embedding(input_ids))  # type: ignore[index]
            return values

    never, not_here = without_gradient(Routed())
    assert never == ["scale", "tower.0.weight", "tower.0.bias"]
    assert not_here == [f"experts.{number}.up.{name}" for number in (0, 2) for name in ("weight", "bias")]


@pytest.mark.long
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "an adapter"])
def test_a_vision_language_model_is_trained_on_texts_by_two_processes(rows: Path, tmp_path: Path, lora: bool) -> None:
    """Whole or sharded, the same weights are trained, so that each goes on from the checkpoints of the other."""
    policy = saved(vision_language(vocabulary=1100), tmp_path / "policy")
    load_tokenizer("testbed:policy").save_pretrained(policy)
    words = ("fit", *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, "--trainer.max_steps", 3)
    kept = ("--checkpoints.every_n_steps", 1, "--checkpoints.keep", -1, *(("--model.lora.rank", 2) if lora else ()))
    whole = tmp_path / "whole"
    for ended in distributed(2, *words, *kept, "--run", whole, "--model.policy", policy):
        ok(ended)
    assert metrics(whole)[-1]["step"] == 3
    sharded, back = tmp_path / "sharded", tmp_path / "back"
    for run, start, strategy in ((sharded, whole, ("--trainer.strategy", "fsdp")), (back, sharded, ())):
        checkpoint = start / "checkpoints" / f"step={1 if start == whole else 2}.ckpt"
        more = ("--run", run, "--model.policy", policy, "--ckpt_path", checkpoint, *strategy)
        for ended in distributed(2, *words, *kept, *more):
            ok(ended)
        ours, theirs = ({**metrics(each)[-1], "train/throughput/tokens_per_second": 0} for each in (run, whole))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
