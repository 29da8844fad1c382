"""The reference does not change, and is not part of the trained module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_align.models import (
    AdapterOff,
    Loading,
    LoRA,
    MovingReference,
    Precomputed,
    SecondModel,
    response_log_probs,
)
from lit_align.types import PairBatch
from tests.conftest import tiny_llama


def moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.fault("B08", "B11")
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


def weight_of(reference: MovingReference) -> torch.Tensor:
    with reference.active() as model:
        return next(iter(model.parameters())).clone()


@pytest.mark.parametrize(("mixing", "expected"), [(0.25, 0.5), (1.0, 2.0)])
def test_a_moving_reference_takes_a_share_of_the_policy(mixing: float, expected: float) -> None:
    """The policy moves by 2 in every weight; the reference follows at the second step only: 0.25 · 2, or all of it."""
    policy, reference = tiny_llama(), MovingReference(every=2, mixing=mixing)
    reference.attach(policy)
    before = weight_of(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(2.0)
    reference.after_step(policy, step=1)
    assert weight_of(reference).equal(before)
    reference.after_step(policy, step=2)
    torch.testing.assert_close(weight_of(reference) - before, torch.full_like(before, expected), rtol=0, atol=1e-6)
    reference.after_step(policy, step=3)
    reference.after_step(policy, step=4)
    second = expected + mixing * (2.0 - expected)
    torch.testing.assert_close(weight_of(reference) - before, torch.full_like(before, second), rtol=0, atol=1e-6)


def test_a_hard_update_is_the_policy_to_the_bit(batch: PairBatch) -> None:
    policy, reference = tiny_llama(), MovingReference(every=1, mixing=1.0)
    reference.attach(policy)
    moved(policy)
    reference.after_step(policy, step=1)
    assert reference.log_probs(batch).equal(response_log_probs(policy, batch))
    moved(policy)
    assert not reference.log_probs(batch).isclose(response_log_probs(policy, batch)).all()


@pytest.mark.resume("the weights of a reference that moves")
def test_a_moving_reference_is_resumed_to_the_bit(batch: PairBatch) -> None:
    policy, reference = tiny_llama(), MovingReference(every=1, mixing=0.3)
    reference.attach(policy)
    moved(policy)
    reference.after_step(policy, step=1)
    fresh = MovingReference(every=1, mixing=0.3)
    fresh.attach(tiny_llama())
    assert not fresh.log_probs(batch).equal(reference.log_probs(batch))
    fresh.load_state_dict(reference.state_dict())
    assert fresh.log_probs(batch).equal(reference.log_probs(batch))
    with pytest.raises(ValueError, match="is not a model like this run's"):
        fresh.load_state_dict({"another.weight": torch.zeros(1)})


def test_what_stays_has_no_state() -> None:
    for reference in (SecondModel(), AdapterOff()):
        assert reference.state_dict() == {}
        assert reference.copies_policy
        assert not reference.moves
    assert MovingReference().moves


def test_a_mean_that_would_be_rounded_away_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mixing is 0\.1, and the policy's weights are in 16 bits"):
        MovingReference(mixing=0.1).attach(tiny_llama().bfloat16())
    MovingReference(mixing=1.0).attach(tiny_llama().bfloat16())


@pytest.mark.parametrize("kind", [SecondModel, Precomputed])
def test_how_a_copy_is_read_is_not_to_be_said(kind: type[SecondModel | Precomputed]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__}: loading is Loading\(.*name the model's path"):
        kind(loading=Loading(dtype="bfloat16"))
    kind("some/model", Loading(dtype="bfloat16"))


def test_a_moving_reference_needs_a_policy_without_adapter() -> None:
    with pytest.raises(ValueError, match="expected a policy without adapter"):
        MovingReference().attach(LoRA(rank=2).wrap(tiny_llama()))


@pytest.mark.parametrize(
    ("every", "mixing", "found"), [(0, 0.5, "every is 0"), (1, 0.0, "mixing is 0"), (1, 1.5, "1.5")]
)
def test_numbers_of_a_moving_reference_out_of_range(every: int, mixing: float, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        MovingReference(every=every, mixing=mixing)


def test_weights_of_the_adapter_that_are_frozen_stay_so() -> None:
    """PEFT lets all weights of an adapter be trained when it is switched on again."""
    policy = LoRA(rank=2).wrap(tiny_llama())
    frozen = next(name for name, weight in policy.named_parameters() if weight.requires_grad)
    policy.get_parameter(frozen).requires_grad_(False)
    before = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    reference = AdapterOff()
    reference.attach(policy)
    with reference.active():
        pass
    assert {name for name, weight in policy.named_parameters() if weight.requires_grad} == before
