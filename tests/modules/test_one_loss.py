"""The fused loss is the loss of the definition, and the objective is called once per chunk, a few frames below."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_align.models import ForwardPass
from lit_align.modules import LitPreference
from lit_align.objectives import (
    SFT,
    Logistic,
    Objective,
    PreferenceObjective,
    averaged_dpo,
    dpo,
    ipo,
    kto,
    rpo,
    simpo,
    sr_dpo,
    wpo,
)
from lit_align.types import Outcome, PairBatch, PairLogProbs
from tests.modules.test_preference import POLICY, pairs, sgd, trainer

OBJECTIVES = {"dpo": dpo(), "averaged_dpo": averaged_dpo(), "ipo": ipo(), "simpo": simpo(), "sr_dpo": sr_dpo()}
OBJECTIVES |= {"rpo": rpo(), "wpo": wpo(), "sft": SFT()}


@dataclass(frozen=True)
class Watched(PreferenceObjective):
    """DPO that records, for each call, its pairs and the frames of the package between it and ``training_step``."""

    contrast: Logistic = Logistic()
    calls: list[tuple[int, int]] = field(default_factory=list, hash=False)

    def __call__(self, logps: PairLogProbs) -> Outcome:
        frames, frame = 0, sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_name != "training_step":
            frames += frame.f_globals.get("__name__", "").startswith("lit_align.")
            frame = frame.f_back
        self.calls.append((len(logps.mask), frames if frame.f_code.co_name == "training_step" else -1))
        return super().__call__(logps)


def loaded(objective: Objective, forward_pass: ForwardPass = ForwardPass()) -> LitPreference:
    module = LitPreference(POLICY, objective, optimizer=sgd, forward_pass=forward_pass)
    module.configure_model()
    return module


def first_batch(rows: Path, objective: Objective) -> PairBatch:
    data = pairs(rows, batch_size=6, prompted=objective.needs.prompted)
    data.setup("fit")
    batch: PairBatch = next(iter(data.train_dataloader()))
    return batch if objective.needs.rejected else batch.chosen_side()


def gradients(module: LitPreference, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_fused_loss_is_the_loss(rows: Path, name: str) -> None:
    """Loss, gradients of all weights and of the log-probabilities, and everything that is reported."""
    module = loaded(OBJECTIVES[name], ForwardPass(tile_mb=0.01))
    with torch.no_grad():
        for weight in module.policy.parameters():  # away from the reference, where log-ratios are not zero
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    batch = first_batch(rows, module.objective)
    definition, fused = module.loss(batch), module.fused_loss(batch)
    assert definition.outcome is not None
    assert fused.outcome is not None
    torch.testing.assert_close(fused.loss, definition.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.logps.policy, definition.logps.policy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.grad_logps, definition.grad_logps, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(fused.outcome.loss, definition.outcome.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused.outcome.rewards, definition.outcome.rewards, rtol=1e-4, atol=1e-4)
    expected, ours = gradients(module, definition.loss), gradients(module, fused.loss)
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for weight_name, gradient in expected.items():
        assert float((ours[weight_name] - gradient).norm()) < 1e-4 * largest, weight_name


def test_the_fused_loss_of_pairs_that_depend_on_each_other_would_be_another() -> None:
    """Such objectives declare it, and ``training_step`` does not use the fused path for them."""
    assert kto().needs.batch_level
    assert not any(objective.needs.batch_level for objective in OBJECTIVES.values())


@pytest.mark.parametrize(("tile_mb", "calls"), [(64.0, [6]), (1e-6, [1] * 6)])
def test_the_objective_is_called_once_for_each_chunk(rows: Path, tile_mb: float, calls: list[int]) -> None:
    module = loaded(Watched(), ForwardPass(tile_mb=tile_mb, tokens_at_once=0))
    module.fused_loss(first_batch(rows, module.objective))
    assert [pairs_of_call for pairs_of_call, _ in module.objective.calls] == calls


@pytest.mark.parametrize("layout", ["auto", "plain"])
def test_a_step_calls_it_once_a_few_frames_below(rows: Path, tmp_path: Path, layout: str) -> None:
    """This also holds when metrics are reported; they need no second evaluation."""
    module = loaded(Watched(), ForwardPass(tokens_at_once=0))
    data = pairs(rows, batch_size=6)
    if layout == "plain":
        data.setup("fit")
        module.readers.assume(module.policy, "plain")
    trainer(tmp_path, max_steps=1, log_every_n_steps=1).fit(module, datamodule=data)
    assert len(module.objective.calls) == 1
    (pairs_of_call, frames) = module.objective.calls[0]
    assert pairs_of_call == 6
    assert 0 < frames <= 6
