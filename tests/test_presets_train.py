"""Every preset trains, and starts at the loss that equal models have."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from lit_align import objectives
from lit_align.data import PreferenceData
from lit_align.models import Loading, load_causal_lm, response_log_probs
from lit_align.models.log_probs import packed_mask
from lit_align.objectives import Objective, PreferenceObjective, ResponseObjective, WeightedSum
from lit_align.types import PairBatch, PairLogProbs
from tests.runner import BASE, SHORT, lit_align, metrics, ok

FUNCTIONS = [name for name in objectives.__all__ if name.islower() and name != "papers_of"]
NAMES = [*FUNCTIONS, "SFT"]
BATCH = 8


@cache
def first_batch(prompted: bool) -> PairBatch:
    data = PreferenceData(train="testbed:train", tokenizer="testbed:policy", batch_size=BATCH, prompted=prompted)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


@cache
def equal_models(prompted: bool) -> PairLogProbs:
    """Log-probabilities of the run's first batch with the policy as its own reference."""
    model, batch = load_causal_lm("testbed:policy", Loading()), first_batch(prompted)

    def under_both(batch: PairBatch, inner: PairLogProbs | None = None) -> PairLogProbs:
        with torch.no_grad():
            values = response_log_probs(model, batch)
        return PairLogProbs(values, values, packed_mask(batch), inner)

    return under_both(batch, under_both(batch.prompted) if batch.prompted is not None else None)


def neutral_loss(objective: PreferenceObjective) -> float:
    """What the contrast makes of no margin at all."""
    return float(objective.contrast(torch.zeros(1)))


def objective(name: str) -> Objective:
    made: Objective = getattr(objectives, name)()
    return made


def test_the_presets_are_found() -> None:
    assert len(FUNCTIONS) > 10
    assert {type(objective(name)) for name in FUNCTIONS} == {PreferenceObjective, ResponseObjective, WeightedSum}
    assert any(objective(name).needs_prompted for name in FUNCTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_starts_at_the_loss_of_equal_models(name: str, tmp_path: Path) -> None:
    ok(
        lit_align(
            *("fit", "--run", tmp_path, *BASE, *SHORT, "--model.objective", name, "--data.train", "testbed:train"),
            *("--data.batch_size", BATCH, "--trainer.max_steps", 3),
        )
    )
    losses = [line["train/loss"] for line in metrics(tmp_path)]
    assert len(losses) == 3
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) == 3
    start = objective(name)
    assert losses[0] == pytest.approx(start(equal_models(start.needs_prompted)).loss.mean().item(), rel=1e-5)


def compares_with_a_reference(name: str) -> bool:
    made = objective(name)
    return isinstance(made, PreferenceObjective) and isinstance(made.regularizer, objectives.KL)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if compares_with_a_reference(name)])
def test_equal_models_have_no_margin_under_kl(name: str) -> None:
    """So their loss is the contrast's at 0, unless the refinement asks for a margin by the lengths alone."""
    start = objective(name)
    assert isinstance(start, PreferenceObjective)
    outcome = start(equal_models(start.needs_prompted))
    assert outcome.margin is not None
    assert outcome.offset is not None
    assert outcome.margin.abs().max() == 0
    if not isinstance(start.refinement, objectives.LengthGap):
        assert outcome.loss.tolist() == [neutral_loss(start)] * BATCH
