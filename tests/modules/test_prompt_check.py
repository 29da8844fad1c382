"""What the quality prompt tells is measured on the pairs, and said in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lit_align import testbed
from lit_align.data import PreferenceData
from lit_align.models import load_causal_lm, response_log_probs
from lit_align.models.loading import Loading
from lit_align.modules import prompt_check
from lit_align.modules.log_probs import LogProbReaders
from lit_align.modules.prompt_check import PromptKnowledge, measure_prompt
from lit_align.objectives import SFT, DynamicBeta, LengthPower, Mean, Objective, Term, WeightedSum, dpo, sr_dpo
from lit_align.testbed.preferences import read_rows
from lit_align.testbed.world import COMPLETE

CPU = torch.device("cpu")


def knowledge(shifts: list[float]) -> PromptKnowledge:
    return PromptKnowledge(np.array(shifts), np.arange(len(shifts), dtype=float))


def test_the_line_says_what_was_found() -> None:
    informed = knowledge([1.0] * 30 + [-1.0] * 10)
    assert informed.informs
    assert "75 % (95 % interval 60 to 86); correlation with the label 0.50" in informed.line
    assert "another data.quality_prompt" not in informed.line
    unclear = knowledge([1.0, -1.0] * 20).line
    assert "on 40 pairs of data.train, by sums over tokens" in unclear
    assert "is not shown to know" in unclear
    assert "rests on 40 pairs, which can show a share of 68 % or more" in unclear
    assert "rests on 3 pairs, which can show no share at all" in knowledge([1.0] * 3).line
    assert "favours the rejected one" in knowledge([-1.0] * 20).line


def test_ties_count_one_half() -> None:
    found = knowledge([0.0] * 10)
    assert found.accuracy.share == 0.5
    assert not found.informs
    assert found.label_correlation == found.length_correlation == 0


def test_the_metrics_are_numbers_of_both_interval_ends() -> None:
    values = knowledge([1.0] * 8 + [-1.0] * 2).values
    assert float(values["quality_prompt/accuracy/low"]) == pytest.approx(0.4902, abs=1e-4)
    assert float(values["quality_prompt/accuracy/high"]) == pytest.approx(0.9433, abs=1e-4)


@pytest.fixture(scope="module")
def policy() -> nn.Module:
    return load_causal_lm("testbed:policy", Loading())


def prepared(folder: Path, prompt: str) -> PreferenceData:
    """Return data of validation pairs of one long, one short and equal responses, and training pairs that differ."""
    rows = read_rows(testbed.path("validation.jsonl"))[:12]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = PreferenceData(
        train="testbed:test",
        validation=str(file),
        limit=40,
        tokenizer="testbed:policy",
        batch_size=5,
        prompted=True,
        quality_prompt=prompt,
    )
    data.setup("fit")
    return data


def test_shifts_are_those_of_the_log_probabilities(policy: nn.Module, tmp_path: Path) -> None:
    data = prepared(tmp_path, COMPLETE)
    state = torch.get_rng_state()
    found = measure_prompt(policy, LogProbReaders(), data, CPU, steps=100)
    assert torch.equal(torch.get_rng_state(), state)
    wanted, gaps = {}, {}
    with torch.no_grad():
        for batch in data.rows_dataloader("validation", range(12)):
            plain, prompted = (response_log_probs(policy, each) for each in (batch, batch.prompted))
            shift = (prompted - plain).double().sum(-1)
            wanted |= dict(zip(batch.index.tolist(), (shift[:, 0] - shift[:, 1]).tolist(), strict=True))
            gaps |= dict(zip(batch.index.tolist(), (batch.lengths[:, 0] - batch.lengths[:, 1]).tolist(), strict=True))
    assert found is not None
    assert found.split == "validation"
    assert sorted(found.shifts) == pytest.approx(sorted(wanted.values()), abs=1e-3)
    assert sorted(found.length_gaps) == sorted(gaps.values())


@pytest.mark.parametrize(
    ("objective", "power"),
    [
        (sr_dpo(), 0.0),
        (replace(sr_dpo(), averaging=Mean()), 1.0),
        (replace(sr_dpo(), averaging=LengthPower(0.5)), 0.5),
        (WeightedSum((Term("likelihood", SFT()), Term("own", replace(sr_dpo(), averaging=Mean())))), 1.0),
        (DynamicBeta(replace(sr_dpo(), averaging=Mean())), 1.0),
        (dpo(), None),
    ],
)
def test_an_objective_says_by_which_power_of_the_length_its_prompted_margin_is_divided(
    objective: Objective, power: float | None
) -> None:
    assert objective.prompted_length_power == power


def test_shifts_are_averaged_as_the_objective_averages(policy: nn.Module, tmp_path: Path) -> None:
    """Of means: log-probabilities per token, which may favour the other side; the line says so."""
    data = prepared(tmp_path, COMPLETE)
    found = measure_prompt(policy, LogProbReaders(), data, CPU, 100, length_power=1.0)
    assert found is not None
    wanted = []
    with torch.no_grad():
        for batch in data.rows_dataloader("validation", range(12)):
            plain, prompted = (response_log_probs(policy, each) for each in (batch, batch.prompted))
            shift = (prompted - plain).double().sum(-1) / batch.lengths
            wanted += (shift[:, 0] - shift[:, 1]).tolist()
    assert sorted(found.shifts) == pytest.approx(sorted(wanted), abs=1e-4)
    assert "by means over tokens" in found.line


def test_an_empty_prompt_tells_nothing(policy: nn.Module, tmp_path: Path) -> None:
    found = measure_prompt(policy, LogProbReaders(), prepared(tmp_path, ""), CPU, steps=100)
    assert found is not None
    assert np.abs(found.shifts).max() < 1e-3
    assert not found.informs


def test_short_runs_read_fewer_pairs(policy: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_check, "PROMPT_CHECK_PAIRS", (2, 5))
    data = prepared(tmp_path, COMPLETE)
    for steps, pairs in ((1, 2), (8, 4), (100, 5)):
        found = measure_prompt(policy, LogProbReaders(), data, CPU, steps)
        assert found is not None
        assert len(found.shifts) == pairs
