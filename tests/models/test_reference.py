"""The reference stays where it was, and out of everyone's way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_align.models import AdapterOff, LoRA, SecondModel, response_log_probs
from lit_align.types import PairBatch
from tests.conftest import tiny_llama


def moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_a_copy_stays_when_the_policy_moves(batch: PairBatch) -> None:
    policy = tiny_llama()
    reference = SecondModel()
    reference.attach(policy)
    before = response_log_probs(policy, batch)
    moved(policy)
    assert reference.log_probs(batch).equal(before)
    assert not response_log_probs(policy, batch).isclose(before).all()


def test_another_model_is_read_from_its_folder(batch: PairBatch, tmp_path: Path) -> None:
    other = tiny_llama(seed=1)
    other.save_pretrained(tmp_path)
    reference = SecondModel(str(tmp_path))
    reference.attach(tiny_llama(seed=0))
    assert reference.log_probs(batch).equal(response_log_probs(other, batch))


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    tiny_llama(vocabulary=40).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vocabulary of 40, but the policy's has 31"):
        SecondModel(str(tmp_path)).attach(tiny_llama())


def test_adapter_off_is_the_base_model_to_the_bit(batch: PairBatch) -> None:
    base = response_log_probs(tiny_llama(), batch)
    policy = LoRA(rank=2).wrap(tiny_llama()).train()
    reference = AdapterOff()
    reference.attach(policy)
    moved(policy)
    assert reference.log_probs(batch).equal(base)
    assert policy.training
    assert not response_log_probs(policy, batch).isclose(base).all()


def test_adapter_off_needs_an_adapter() -> None:
    with pytest.raises(ValueError, match="has no adapter"):
        AdapterOff().attach(tiny_llama())


@pytest.mark.parametrize("reference", [SecondModel(), AdapterOff()])
def test_used_too_early(reference: SecondModel | AdapterOff, batch: PairBatch) -> None:
    with pytest.raises(RuntimeError, match="attach"):
        reference.log_probs(batch)
