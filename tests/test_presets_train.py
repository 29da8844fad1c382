"""Every preset on a batch of the testbed, with the policy as its own reference."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lit_align import objectives, testbed
from lit_align.data import PreferenceData
from lit_align.models import Loading, SecondModel, load_causal_lm
from lit_align.modules.log_probs import LogProbs
from lit_align.objectives import Objective, PreferenceObjective, ResponseObjective, WeightedSum
from lit_align.objectives.pair_seed import training_pair_seed
from lit_align.types import PairBatch, PairLogProbs

FUNCTIONS = [name for name in objectives.__all__ if name.islower() and name != "papers_of"]
NAMES = [*FUNCTIONS, "SFT"]
BATCH = 8


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's training pairs, each with a margin, for the objectives that require one."""
    rows = [json.loads(line) for line in testbed.path("train.jsonl").read_text("utf-8").splitlines()[:64]]
    path = tmp_path_factory.mktemp("presets") / "pairs.jsonl"
    path.write_text("".join(json.dumps({**row, "margin": 0.25}) + "\n" for row in rows), "utf-8")
    return path


def columns(made: Objective) -> dict[str, str | None]:
    return {} if "margin" in made.needs.columns else {"margin": None}


@cache
def loaded(policy: str) -> PreTrainedModel:
    """Return a policy that no test changes."""
    return load_causal_lm(policy, Loading())


def data_for(made: Objective, rows: Path, batch_size: int) -> PreferenceData:
    """Return a data module with everything that the objective needs of the rows."""
    return PreferenceData(
        train=str(rows),
        validation=str(rows),
        tokenizer="testbed:policy",
        batch_size=batch_size,
        prompted=made.needs.prompted,
        mismatched=made.needs.mismatched,
        columns=columns(made),
        seed=0,
    )


def equal_models(made: Objective, rows: Path, policy: str = "testbed:policy", batch_size: int = BATCH) -> PairLogProbs:
    """Return the log-probabilities of a run's first batch, with the policy as its own reference."""
    data = data_for(made, rows, batch_size)
    data.setup("fit")
    batch: PairBatch = next(iter(data.train_dataloader()))
    model, reference = loaded(policy), SecondModel()
    reference.attach(model)
    running = {name: torch.tensor(first, dtype=torch.float64) for name, first in made.initial_state.items()}
    log_probs = LogProbs(made, model, reference)
    reference.read_with(log_probs.readers.read)
    with torch.no_grad():
        return log_probs(batch, training_pair_seed(batch.index, step=0, seed=0), running)


def neutral_loss(objective: PreferenceObjective) -> float:
    """Return the contrast at a margin of 0."""
    return float(objective.contrast(torch.zeros(1)))


def objective(name: str) -> Objective:
    made: Objective = getattr(objectives, name)()
    return made


def test_the_presets_are_found() -> None:
    assert len(FUNCTIONS) > 10
    assert {type(objective(name)) for name in FUNCTIONS} >= {PreferenceObjective, ResponseObjective, WeightedSum}
    for need in ("prompted", "mismatched", "collision", "pair_seed", "batch_level"):
        assert any(getattr(objective(name).needs, need) for name in FUNCTIONS), need
    assert any(objective(name).initial_state for name in FUNCTIONS)


def compares_with_a_reference(name: str) -> bool:
    made = objective(name)
    return isinstance(made, PreferenceObjective) and isinstance(made.regularizer, objectives.KL)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if compares_with_a_reference(name)])
def test_equal_models_have_no_margin_under_kl(name: str, train: Path) -> None:
    """The loss is the contrast at 0, unless the refinement sets an offset by the lengths alone."""
    start = objective(name)
    assert isinstance(start, PreferenceObjective)
    outcome = start(replace(equal_models(start, train), margin=None))
    assert outcome.margin is not None
    assert outcome.offset is not None
    assert outcome.margin.abs().max() == 0
    if not isinstance(start.refinement, objectives.LengthGap):
        assert outcome.loss.tolist() == [neutral_loss(start)] * BATCH
