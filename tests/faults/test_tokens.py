"""Tokenizers and models that do not fit, and weights that cannot be trained, end a run before its first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_align import testbed
from lit_align.models import MovingReference, Reference, SecondModel, response_log_probs
from lit_align.types import PairBatch
from tests.conftest import tiny_llama
from tests.runner import BASE, SHORT, Ended, first_loss, lit_align, metrics, ok


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the shipped policy, to be damaged."""
    shipped = testbed.resolve("testbed:policy")
    assert shipped is not None
    return Path(shutil.copytree(shipped, tmp_path / "model"))


def rewrite(folder: Path, name: str, factor: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] * factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def fit(run: Path, rows: Path, *more: object) -> Ended:
    return lit_align(
        *("fit", "--run", run, *BASE, *SHORT, "--model.objective", "dpo", "--data.train", rows),
        *("--trainer.max_steps", 1, *more),
    )


def refused(ended: Ended, run: Path, *reasons: str, code: int = 2) -> None:
    assert ended.code == code, ended.out
    for reason in reasons:
        assert reason in ended.out
    assert "Traceback" not in ended.out
    assert not metrics(run)
    assert not (run / "policy").exists()


@pytest.mark.fault("B08")
@pytest.mark.parametrize("reference", [SecondModel(), MovingReference()], ids=["still", "moving"])
def test_b08_the_reference_shares_no_number_with_the_policy(reference: Reference) -> None:
    policy = tiny_llama()
    reference.attach(policy)
    with reference.active() as model:
        assert model is not policy
        theirs = {parameter.data_ptr() for parameter in model.parameters()}
        assert theirs.isdisjoint(parameter.data_ptr() for parameter in policy.parameters())
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.fault("B11", "B12")
def test_b11_b12_the_reference_of_a_policy_is_the_one_in_memory_not_a_file(batch: PairBatch) -> None:
    """A model that was never saved and has changed since it was created."""
    policy = tiny_llama()
    assert not policy.config._name_or_path
    before = response_log_probs(policy, batch).detach()
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.5)
    reference = SecondModel()
    reference.attach(policy)
    assert reference.log_probs(batch).equal(response_log_probs(policy, batch))
    assert not reference.log_probs(batch).isclose(before).all()


@pytest.mark.fault("B09")
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_b09_a_weight_of_the_policy_that_is_not_finite(rows: Path, model: Path, tmp_path: Path, factor: float) -> None:
    rewrite(model, "model.norm.weight", factor)
    ended = fit(tmp_path / "run", rows, "--model.policy", model)
    refused(ended, tmp_path / "run", f"{model}: weight model.norm.weight has values that are not finite")


@pytest.mark.fault("B10")
def test_b10_a_weight_of_the_reference_that_is_not_finite(rows: Path, model: Path, tmp_path: Path) -> None:
    rewrite(model, "model.norm.weight", float("nan"))
    ended = fit(tmp_path / "run", rows, "--model.reference", "SecondModel", "--model.reference.path", model)
    refused(ended, tmp_path / "run", f"{model}: weight model.norm.weight has values that are not finite")


@pytest.mark.fault("B13b", "B14")
def test_b13b_b14_sequences_beyond_the_rotary_positions(rows: Path, model: Path, tmp_path: Path) -> None:
    """``max_length`` may be larger: only the longest pair must fit."""
    configure(model, max_position_embeddings=64)
    more = ("--model.policy", model, "--data.max_length", 100_000)
    refused(fit(tmp_path / "run", rows, *more), tmp_path / "run", "was made for 64 positions; lower data.max_length")
    ok(fit(tmp_path / "cut", rows, *more[:2], "--data.max_length", 64))
    configure(model, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0})
    ok(fit(tmp_path / "scaled", rows, *more))


@pytest.mark.fault("B15")
def test_b15_half_precision_that_overflows_is_not_to_be_had(rows: Path, model: Path, tmp_path: Path) -> None:
    """Logits that overflow float16 are finite in float32."""
    rewrite(model, "model.norm.weight", 3e4)
    more = ("--model.policy", model, "--model.loading.dtype")
    refused(fit(tmp_path / "half", rows, *more, "float16"), tmp_path / "half", "model.loading.dtype")
    ok(fit(tmp_path / "whole", rows, *more, "float32"))


@pytest.mark.fault("B18b")
def test_b18b_a_name_of_the_hub_that_cannot_be_reached(rows: Path, tmp_path: Path) -> None:
    ended = fit(tmp_path / "run", rows, "--model.policy", "some-owner/some-model")
    refused(ended, tmp_path / "run", "some-owner/some-model")


@pytest.mark.fault("B20")
def test_b20_dropout_of_a_configuration_does_not_move_the_first_loss(rows: Path, model: Path, tmp_path: Path) -> None:
    configure(model, attention_dropout=0.5)
    ok(fit(tmp_path / "run", rows, "--model.policy", model))
    assert first_loss(tmp_path / "run") == pytest.approx(0.693147, abs=1e-6)
