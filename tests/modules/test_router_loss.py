"""Training with the load-balancing loss: the same weights however a step is split, reported apart from the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from lit_align.models import ForwardPass
from lit_align.modules import Constant, LitPreference
from lit_align.objectives import Objective, aot, dpo
from tests.runner import distance, forked, in_processes, ok
from tests.test_partitions import Layout, Result, results_in, sgd, trained
from tests.test_presets_train import loaded

WHOLE = Layout(1, 4, 1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Mixtral whose routers are not balanced."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vocabulary = loaded("testbed:policy").config.vocab_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.MixtralForCausalLM(
            hf.MixtralConfig(**size, **ids, num_key_value_heads=2, num_local_experts=4, vocab_size=vocabulary)
        )
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight"):
                torch.nn.init.normal_(weight, std=1.0)
    folder = tmp_path_factory.mktemp("mixture")
    model.save_pretrained(folder)
    return str(folder)


def module(policy: str, objective: Objective, weight: float = 2.0, **options: Any) -> LitPreference:
    return LitPreference(policy, objective, optimizer=sgd, schedule=Constant(), router_loss=weight, **options)


def reported(result: Result, name: str) -> list[float]:
    return [line[name] for line in result.lines if name in line]


def assert_same(one: Result, other: Result) -> None:
    assert distance(one.weights, other.weights) < 1e-6
    for name in ("train/loss", "train/router_loss"):
        assert reported(one, name) == pytest.approx(reported(other, name), rel=2e-5)


def test_a_step_is_the_same_however_it_is_split(policy: str, rows: Path) -> None:
    whole = trained(module(policy, dpo()), rows, WHOLE)
    chunks = module(policy, dpo(), forward_pass=ForwardPass(tokens_at_once=1))
    assert_same(trained(chunks, rows, Layout(1, 2, 2)), whole)
    balance = reported(whole, "train/router_loss")
    assert len(balance) == 3
    assert all(value > 2 for value in balance)  # 2 where all four experts are chosen alike, two by each token


@pytest.mark.long
def test_the_loss_is_that_of_the_objective_and_the_weights_are_not(policy: str, rows: Path) -> None:
    whole, without = (trained(module(policy, dpo(), weight), rows, WHOLE) for weight in (2.0, 0.0))
    assert distance(without.weights, whole.weights) > 1e-4
    assert reported(without, "train/router_loss") == []
    assert reported(whole, "train/loss")[0] == pytest.approx(reported(without, "train/loss")[0])


@pytest.mark.long
@pytest.mark.parametrize("objective", [dpo(), aot()], ids=["dpo", "aot"])
def test_processes_and_losses_across_pairs(policy: str, rows: Path, tmp_path: Path, objective: Objective) -> None:
    """An objective across pairs reads each pair twice: its routers count once."""
    whole = trained(module(policy, objective), rows, WHOLE)
    assert_same(trained(module(policy, objective), rows, Layout(1, 1, 4)), whole)

    def work(rank: int) -> None:
        result = trained(module(policy, objective), rows, Layout(2, 1, 2))
        if rank == 0:
            torch.save({"mine": vars(result)}, tmp_path / "results.pt")

    for ended in forked(in_processes(2, work)):
        ok(ended)
    assert_same(results_in(tmp_path)["mine"], whole)


def test_a_model_without_routers_and_a_wrong_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="llama is none: leave it out"):
        module("testbed:policy", dpo()).configure_model()
    with pytest.raises(ValueError, match=r"model.router_loss is -1.0; expected a finite number, 0 or more"):
        module("testbed:policy", dpo(), -1.0)
