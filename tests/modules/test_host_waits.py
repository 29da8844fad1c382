"""A step on a device waits for it at most twice, however many pairs and tokens there are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lit_align.modules import LitPreference
from lit_align.objectives import averaged_dpo
from lit_align.types import PairBatch
from tests.conftest import tiny_llama
from tests.models.architectures import VOCABULARY, telling_batch
from tests.standin import DEVICE, OnDevice, on_device, standin


def module(moves: bool) -> Any:
    """A module with policy and reference, on the stand-in device or not; the layout is the fastest one."""
    made: Any = LitPreference("testbed:policy", averaged_dpo())
    made.policy = tiny_llama(vocabulary=VOCABULARY)
    made.reference.attach(made.policy)
    made.reference.read_with(made.readers.read)
    reference = made.reference._model
    if moves:
        on_device(made.policy), on_device(reference)
        for name in made.train_metrics._defaults:
            setattr(made.train_metrics, name, OnDevice(getattr(made.train_metrics, name)))
    for model in (made.policy, reference):
        made.readers.assume(model, "shared")
    strategy = SingleDeviceStrategy("cpu")
    made._trainer = SimpleNamespace(strategy=strategy, world_size=1, global_step=1, datamodule=None, global_rank=0)
    return made.train()


def take_step(made: Any, batch: PairBatch) -> torch.Tensor:
    """All of an optimizer step but the optimizer, whose kernels wait for nothing."""
    made.zero_grad()
    loss = made._record(made.fused_loss(batch), batch)
    loss.backward()
    made.on_before_optimizer_step(torch.optim.SGD(made.policy.parameters(), lr=1.0))
    return loss


def test_a_step_waits_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the weight of its pairs and for the norm of its gradient; the loss is that of a CPU."""
    monkeypatch.setattr(LitPreference, "global_step", property(lambda self: 1))
    batch, here = telling_batch(), module(moves=False)
    expected = take_step(here, batch)
    gradients = [weight.grad for weight in here.policy.parameters()]
    with standin(monkeypatch) as waits:
        away = module(moves=True)
        moved = batch.to(DEVICE, non_blocking=True)
        take_step(away, moved)  # moves what stays there: zeros of sums, places of metrics
        waits.clear()
        loss = take_step(away, moved)
        assert len(waits) == 2, waits
        for place in range(3):  # nor for selections of pairs
            moved.rows(slice(place, place + 2)).chosen_side()
        assert len(waits) == 2, waits
        assert loss.inner == expected
        for weight, gradient in zip(away.policy.parameters(), gradients, strict=True):
            torch.testing.assert_close(weight.grad.inner, gradient, rtol=1e-4, atol=1e-6)


def test_predict_on_a_device_gives_the_records_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And waits equally often for few pairs and for many."""
    batch, counts = telling_batch(), []
    with torch.no_grad():
        expected = module(moves=False).predict_step(batch, 0)
        with standin(monkeypatch) as waits:
            away = module(moves=True)
            for count in (2, 5):
                moved = batch.rows(slice(count)).to(DEVICE, non_blocking=True)
                waits.clear()
                records = away.predict_step(moved, 0)
                counts.append(len(waits))
    assert counts[0] == counts[1], waits
    for record, other in zip(records, expected, strict=True):
        assert record.keys() == other.keys()
        assert record["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert record["rewards"] == pytest.approx(other["rewards"], rel=1e-4, abs=1e-6)


def test_the_stand_in_sees_what_it_is_there_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits of every kind, and two devices in one operation."""
    with standin(monkeypatch) as waits:
        numbers = torch.arange(3.0).to(DEVICE, non_blocking=True)
        float(numbers[0]), numbers.nonzero(), numbers[numbers > 0], numbers.to("cpu"), torch.ones(2).to(DEVICE)
        assert len(waits) == 5, waits
        with pytest.raises(AssertionError, match="mixes tensors of two devices"):
            numbers + torch.ones(3)
