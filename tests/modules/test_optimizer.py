"""Norms and biases do not decay, and a step evaluates its loss once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.trainer import Trainer

from lit_align.models import Loading, LoRA, load_causal_lm
from lit_align.modules import LitOnline, LitPreference, LitReward
from lit_align.modules.optimizer import SingleEvaluation, build_optimizer, check_kind, undecayed_parameters
from lit_align.objectives import dpo
from tests.runner import BASE, SHORT, lit_align, metrics, ok


def models() -> list[nn.Module]:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    llama = load_causal_lm("testbed:policy", Loading())
    return [gpt2, llama, LoRA(rank=2).wrap(load_causal_lm("testbed:policy", Loading()))]


@pytest.mark.parametrize("number", range(3), ids=["gpt2", "llama", "adapter"])
def test_what_decays_is_what_decays_in_transformers(number: int) -> None:
    model = models()[number]
    theirs = set(Trainer.get_decay_parameter_names(object(), model))  # type: ignore[arg-type]
    exempt = undecayed_parameters(model)
    ours = {name for name, weight in model.named_parameters() if id(weight) not in exempt}
    assert ours == theirs & {name for name, _ in model.named_parameters()}
    assert exempt


@pytest.mark.parametrize("groups", ["flat", "with a rate of their own"])
def test_the_groups(groups: str) -> None:
    layer = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1, bias=False))
    weights = list(layer.parameters())
    parts: list[Any] = weights if groups == "flat" else [{"params": weights[:2]}, {"params": weights[2:], "lr": 0.5}]
    made = build_optimizer(partial(AdamW, lr=0.1, weight_decay=0.2), parts, layer, False)
    decays = {id(weight): group["weight_decay"] for group in made.param_groups for weight in group["params"]}
    assert [decays[id(weight)] for weight in weights] == [0.2, 0.0, 0.0, 0.0, 0.2]
    if groups != "flat":
        rates = {id(weight): group["lr"] for group in made.param_groups for weight in group["params"]}
        assert [rates[id(weight)] for weight in weights] == [0.1, 0.1, 0.5, 0.5, 0.5]
    for same in (
        build_optimizer(partial(AdamW, weight_decay=0.2), weights, layer, True),
        build_optimizer(partial(AdamW, weight_decay=0.0), weights, layer, False),
        build_optimizer(partial(torch.optim.Rprop), weights, layer, False),
    ):
        assert len(same.param_groups) == 1


@pytest.mark.parametrize("kind", [torch.optim.Adam, AdamW])
def test_a_step_is_fused_and_is_the_same_step(kind: type[Optimizer]) -> None:
    weights = {}
    for fused in (None, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = nn.Linear(37, 11)
            build = partial(kind, lr=0.1, weight_decay=0.2, **({} if fused is None else {"fused": fused}))
            optimizer = build_optimizer(build, list(layer.parameters()), layer, False)
            assert [group["fused"] for group in optimizer.param_groups] == [fused is None] * 2
            for _ in range(3):
                layer(torch.randn(5, 37)).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        weights[fused] = layer.weight.detach()
    torch.testing.assert_close(weights[None], weights[False], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "build", [partial(AdamW, foreach=True), partial(AdamW, differentiable=True), partial(SGD, lr=0.1)], ids=str
)
def test_another_choice_of_how_a_step_is_computed_stays(build: Callable[[Any], Optimizer]) -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(build, list(layer.parameters()), layer, False)
    assert not any(group["fused"] for group in optimizer.param_groups)


@pytest.mark.representative
def test_gradients_are_clipped_in_16_bits_though_a_step_is_fused_by_name(rows: Path, tmp_path: Path) -> None:
    """TRL's default optimizer with its own clipping; the same as where the step is fused by default."""
    words = ("fit", *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, "--trainer.max_steps", 2)
    words += ("--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 0.1)
    words += ("--model.optimizer", "torch.optim.AdamW", "--model.optimizer.lr", 1e-3)
    for key in ("true", "null"):
        ok(lit_align(*words, "--model.optimizer.fused", key, "--run", tmp_path / key))
    assert metrics(tmp_path / "true") == metrics(tmp_path / "null")


def test_all_modules_have_the_key() -> None:
    made = (LitPreference("x", dpo()), LitReward("x"))
    assert not any(module.decay_norms_and_biases for module in made)
    assert LitPreference("x", dpo(), decay_norms_and_biases=True).decay_norms_and_biases
    assert "decay_norms_and_biases" in LitOnline.__init__.__annotations__


def test_a_run_says_what_decays(rows: Path, tmp_path: Path) -> None:
    """At a weight decay that would zero them, norms stay as they are; with the key they do not."""
    words = ("fit", *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, "--trainer.max_steps", 1)
    decay = (
        "--model.optimizer",
        "torch.optim.AdamW",
        "--model.optimizer.lr",
        0.1,
        "--model.optimizer.weight_decay",
        1,
    )
    for key, line in (((), "(lr 0.1, weight decay 1), "), (("--model.decay_norms_and_biases", "true"), "decay 1)")):
        ended = ok(lit_align(*words, *decay, *key, "--run", tmp_path / str(len(key))))
        assert line in ended.out
        assert ("weight decay 0)" in ended.out) is not bool(key)
        assert metrics(tmp_path / str(len(key)))


# ── the closure ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Twice(SGD):
    """Evaluates its loss twice, as sharpness-aware optimizers do."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure()
        return super().step(closure)


def test_an_optimizer_that_evaluates_twice_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(1))
    check_kind(SGD([weight]))
    with pytest.raises(ValueError, match=r"LBFGS evaluates the loss several times per step.*evaluates it once"):
        check_kind(LBFGS([weight]))
    optimizer: Optimizer = Twice([weight])
    with pytest.raises(ValueError, match=r"model.optimizer Twice evaluates the loss several times"):
        optimizer.step(SingleEvaluation(lambda: weight.sum(), optimizer))
    once = SingleEvaluation(lambda: weight.sum(), SGD([weight]))
    with pytest.raises(ValueError, match=r"SGD takes a step without calling the closure"):
        once.check()
    SGD([weight]).step(once)
    once.check()


def test_lbfgs_is_refused_before_weights_are_read(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    unread = ("--model.policy", tmp_path / "empty", "--data.tokenizer", "testbed:policy", *SHORT)
    words = ("--model.objective", "dpo", "--data.train", rows, "--run", tmp_path / "run")
    ended = lit_align("fit", *unread, *words, "--model.optimizer", "torch.optim.LBFGS")
    assert ended.code == 2
    assert "model.optimizer LBFGS evaluates the loss several times" in ended.out


def test_an_optimizer_of_ones_own_that_evaluates_twice_ends_the_run(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "twice_optimizer.py").write_text(
        "import torch\nclass Twice(torch.optim.SGD):\n    def step(self, closure=None):\n"
        "        closure()\n        return super().step(closure)\n"
    )
    words = ("fit", *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows, "--run", tmp_path / "run")
    ended = lit_align(*words, "--extend", folder, "--model.optimizer", "twice_optimizer.Twice")
    assert ended.code == 2
    assert "model.optimizer Twice evaluates the loss several times" in ended.out
    assert "Traceback" not in ended.out
