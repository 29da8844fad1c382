"""What is said, or refused, before the first step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_align.data import PreferenceData, Split
from lit_align.modules.setup_checks import check_needs, length_quarters, read_scales, response_lengths
from lit_align.objectives import Objective, averaged_dpo, dpo, kto, sr_dpo


@pytest.fixture
def split(rows: Path) -> Split:
    data = PreferenceData(train=str(rows), tokenizer="testbed:policy")
    data.prepare_all()
    return data.splits["train"]


@pytest.mark.parametrize(
    ("objective", "found"), [(sr_dpo(), r"data\.prompted must be true"), (kto(), r"data\.mismatched must be true")]
)
def test_data_that_does_not_build_what_is_needed(objective: Objective, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        check_needs(objective, SimpleNamespace(prompted=False, mismatched=False, splits={}))


def test_a_beta_of_the_other_scale_is_said_once(split: Split, recwarn: pytest.WarningsRecorder) -> None:
    mean = float(response_lengths(split).mean())
    (reading,) = read_scales(averaged_dpo(beta=0.01), split)
    assert reading.at_sum_scale == pytest.approx(0.01 / mean)
    assert len([warning for warning in recwarn if "at the scale of sums" in str(warning.message)]) == 1


def test_a_beta_of_its_own_scale_is_not_warned_of(split: Split, recwarn: pytest.WarningsRecorder) -> None:
    (reading,) = read_scales(dpo(beta=0.1), split)
    assert reading.at_sum_scale == 0.1
    assert not [warning for warning in recwarn if "scale" in str(warning.message)]


def test_quarters_of_the_responses_hold_a_quarter_each(split: Split) -> None:
    lengths = response_lengths(split)
    assert len(lengths) == 22
    first, middle, last = length_quarters(split)
    assert (lengths <= middle).mean() == pytest.approx(0.5, abs=0.1)
    assert (lengths <= first).mean() == pytest.approx(0.25, abs=0.1)
    assert (lengths <= last).mean() == pytest.approx(0.75, abs=0.1)
