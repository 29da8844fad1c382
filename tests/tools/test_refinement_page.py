"""The arithmetic of the page on self-refinement."""

from __future__ import annotations

import numpy as np
import pytest

from lit_align.testbed.world import COMPLETE
from tools.evidence.refinement import accuracy, gains, name_of, partial_correlation
from tools.evidence.sweeps import RunNumbers


def test_accuracy_follows_labels_or_the_sign_of_a_gap() -> None:
    assert accuracy([1.0, 2.0, -1.0, 3.0]) == 0.75
    assert accuracy([1.0, 2.0, -1.0, 3.0], np.array([1.0, -1.0, -2.0, 0.0])) == pytest.approx(2 / 3)


def test_a_partial_correlation_leaves_out_what_the_third_value_explains() -> None:
    given, own, other = np.random.default_rng(0).normal(size=(3, 4000))
    assert np.corrcoef(given + 0.3 * own, given + 0.3 * other)[0, 1] > 0.8
    assert abs(partial_correlation(given + 0.3 * own, given + 0.3 * other, given)) < 0.05
    assert partial_correlation(given + own, given + own + 0.1 * other, given) > 0.95


def test_refined_runs_are_compared_with_their_control_by_seed() -> None:
    def run(objective: str, seed: int, score: float, **values: float) -> RunNumbers:
        settings = {f"model.objective.{key}": value for key, value in values.items()}
        prompt = {"data.quality_prompt": COMPLETE} if objective == "sr_dpo" else {}
        return RunNumbers("s", seed, {"model.objective": objective, **settings, **prompt}, {}, {"score": score}, "")

    controls = [run("dpo", seed, 3.0 * seed, beta=0.05) for seed in (1, 2)]
    gained = gains([*controls, *(run("sr_dpo", seed, 3.0 * seed - 1, strength=0.5) for seed in (1, 2, 3))])
    assert list(gained) == ["sr_dpo, λ 0.5"]
    assert (gained["sr_dpo, λ 0.5"].difference.value, gained["sr_dpo, λ 0.5"].difference.n) == (-1.0, 2)


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
