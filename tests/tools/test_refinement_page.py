"""The arithmetic of the page on self-refinement."""

from __future__ import annotations

import numpy as np
import pytest

from tools.evidence.refinement import accuracy, name_of, partial_correlation
from tools.evidence.sweeps import RunNumbers


def test_accuracy_follows_labels_or_the_sign_of_a_gap() -> None:
    assert accuracy([1.0, 2.0, -1.0, 3.0]) == 0.75
    assert accuracy([1.0, 2.0, -1.0, 3.0], np.array([1.0, -1.0, -2.0, 0.0])) == pytest.approx(2 / 3)


def test_a_partial_correlation_leaves_out_what_the_third_value_explains() -> None:
    given, own, other = np.random.default_rng(0).normal(size=(3, 4000))
    assert np.corrcoef(given + 0.3 * own, given + 0.3 * other)[0, 1] > 0.8
    assert abs(partial_correlation(given + 0.3 * own, given + 0.3 * other, given)) < 0.05
    assert partial_correlation(given + own, given + own + 0.1 * other, given) > 0.95


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"model.objective": "dpo", "model.objective.beta": 0.05}, "dpo, β 0.05"),
        ({"model.objective": "sr_dpo", "model.objective.strength": 0.5, "data.quality_prompt": None},
         "sr_dpo, λ 0.5, naive (p empty)"),
        ({"model.objective": "sr_ipo", "model.objective.strength": 5.0}, "sr_ipo, λ 0.5 as derived"),
        ({"model.objective": "dpo", "model.objective.beta": 0.1, "data.train": "w/noise=0.3/train.jsonl"},
         "dpo, β 0.1, 30 % of verdicts reversed"),
    ],
)  # fmt: skip
def test_settings_are_named(values: dict[str, object], name: str) -> None:
    assert name_of(RunNumbers("s", 1, values, {}, {}, "")) == name
