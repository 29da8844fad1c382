"""The page on a real model: its arithmetic, and reading that goes on where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lit_align import testbed
from lit_align.models import load_causal_lm, response_log_probs
from lit_align.models.loading import Loading
from lit_align.testbed.preferences import read_rows
from lit_align.types import PreferencePair
from tests.conftest import pair_batch
from tools.evidence import real, real_judge, real_tables
from tools.evidence.intervals import clustered
from tools.evidence.real import AFTER, PAPER, PLAIN, Readings
from tools.evidence.sweeps import RunNumbers

READINGS = Readings(
    sums=np.array([[-10.0, -12.0], [-8.0, -6.0], [-5.0, -5.0]]),
    tokens=np.array([[10.0, 4.0], [20.0, 21.0], [3.0, 6.0]]),
    prompts=np.array([0, 0, 1]),
)
"""By sums right, wrong and a tie; by means right, wrong and wrong."""


def test_readings_are_judged_by_both_scales_and_by_length() -> None:
    assert READINGS.right("sum").tolist() == [1.0, 0.0, 0.5]
    assert READINGS.right("mean").tolist() == [1.0, 0.0, 0.0]
    assert [real.BUCKETS[place] for place in READINGS.buckets] == ["chosen longer", "similar", "chosen shorter"]
    assert READINGS.longer("sum").tolist() == [1.0, 1.0, 0.5]
    assert (READINGS - READINGS).margins("mean").tolist() == [0.0, 0.0, 0.0]


def test_pairs_on_one_prompt_count_as_one_observation_for_the_interval() -> None:
    """Four equal pairs on each of two prompts leave the interval of two values, and not that of eight."""
    estimate, p = clustered([1.0] * 4 + [0.0] * 4, [7] * 4 + [9] * 4)
    two, p_two = clustered([1.0, 0.0], [0, 1])
    assert (estimate.value, estimate.low, estimate.high, p) == pytest.approx((two.value, two.low, two.high, p_two))
    assert clustered([1.0, 0.0] * 4, range(8))[0].high < estimate.high / 3  # type: ignore[operator]


def test_votes_become_probabilities_and_nothing_else_changes(tmp_path: Path) -> None:
    votes = {"votes_chosen": 2, "votes_rejected": 0, "votes_tie": 1}
    pair = PreferencePair(
        ({"role": "user", "content": "2 + 2?"},),
        ({"role": "assistant", "content": "4."},),
        ({"role": "assistant", "content": "5."},),
        extra=votes,
    )
    other = replace(pair, chosen=({"role": "assistant", "content": "Four."},))
    tests = {"PandaLM": [other], "LLMBar": [other, pair]}
    real.write_data(real.RealPairs([pair], [other], tests, {}, {}), tmp_path)
    judged = json.loads((tmp_path / "judge.jsonl").read_text("utf-8"))
    assert judged["chosen"][0]["content"] == "Four."
    assert (tmp_path / "prompts.jsonl").read_text("utf-8").count("2 + 2?") == 1
    plain, soft = (json.loads((tmp_path / f"{name}.jsonl").read_text("utf-8")) for name in ("train", "votes"))
    assert soft.pop("preference_probability") == pytest.approx(5 / 6)
    assert soft == plain == {"prompt": [*pair.prompt], "chosen": [*pair.chosen], "rejected": [*pair.rejected]}  # type: ignore[misc]


def test_what_a_reward_model_says_stands_beside_the_policy_before_training() -> None:
    assert real_judge.policy_name(Path("seed=2/averaged_dpo-beta=1.6-seed=2")) == "averaged-dpo-2"
    metrics = {
        "score": {"value": 0.5, "low": 0.25, "high": 0.75},
        "win_rate": {"value": 0.5, "low": None, "high": None},
    }
    models = [{"name": "dpo-1", "metrics": metrics}, {"name": real_judge.START, "metrics": {}}]
    lines = real_judge.judge_table(real_judge.Judge(0.625, models)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == [real_judge.START, "dpo-1"]
    assert "| 0.50 (0.25–0.75) |" in lines[3]
    assert lines[-1] == "The reward model is right in 62 % of PandaLM's test pairs."


def run(objective: str, sums: list[list[float]], **values: object) -> RunNumbers:
    settings = {"model.objective": objective, "model.lora.rank": 16, **values}
    return RunNumbers("s", 1, settings, {}, {name: sums for name in AFTER}, "")


def test_the_methods_of_runs_have_names() -> None:
    assert real_tables.method(run("averaged_dpo", [])) == "averaged_dpo, β 1.6"
    assert real_tables.method(run("dpo", [], **{"data.train": "runs/pages/real/votes.jsonl"})) == "dpo, β 0.1, votes"
    whole = run("dpo", [])
    values = {key: value for key, value in whole.values.items() if key != "model.lora.rank"}
    assert real_tables.method(replace(whole, values=values)) == "dpo, β 0.1, all weights"


def test_rewards_are_compared_with_those_of_dpo_pair_by_pair() -> None:
    """dpo gains on longer responses and averaged DPO on shorter ones: all of 100 points lie between them."""
    start = {(PLAIN, name): READINGS for name in AFTER}
    sign = np.sign(READINGS.gaps)[:, None] * np.array([[1.0, -1.0]])
    runs = [run("dpo", (READINGS.sums + sign).tolist()), run("averaged_dpo", (READINGS.sums - sign).tolist())]
    tested = real_tables.differences(runs, start)
    own = tested["LLMBar", "averaged_dpo, β 1.6", "each its own"]
    assert own["longer"].difference.value == -100.0
    assert own["right"].difference.value == pytest.approx(100 / 3)  # right are those whose chosen response is shorter
    assert set(tested) == {
        (name, "averaged_dpo, β 1.6", scale) for name in AFTER for scale in ("sum", "mean", "each its own")
    }
    assert "| LLMBar | averaged_dpo, β 1.6 | 1 | mean |" in real_tables.after_table(runs, start)


def test_the_first_table_has_what_prompts_shift() -> None:
    shifted = replace(READINGS, sums=READINGS.sums + np.array([0.0, 3.0]))
    start = {(PLAIN, "LLMBar"): READINGS, (PAPER, "LLMBar"): shifted}
    table = real_tables.start_table(start)
    assert "| LLMBar | length alone |  | 33 %" in table.replace("| | ", "|  | ")
    assert f"| LLMBar | shift by {PAPER} | sum | 0 %" in table


def test_reading_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_rows(testbed.path("test.jsonl"))[:3]
    pairs = [PreferencePair(*(row[name] for name in ("prompt", "chosen", "rejected"))) for row in rows]
    model = str(testbed.path("policy"))
    assert real.read_policy(model, pairs, tmp_path, report=True) is None
    real.read_policy(model, pairs[:2], tmp_path)
    reads: list[int] = []
    read = real._read
    monkeypatch.setattr(real, "_read", lambda loaded, missing: (reads.append(len(missing)), read(loaded, missing))[1])
    readings = real.read_policy(model, pairs, tmp_path)
    assert reads == [1]
    assert real.read_policy(model, pairs, tmp_path, report=True) is not None
    tokenized = real._load(model).tokenize(pairs)
    batch = pair_batch(
        [list(each.prompt) for each in tokenized], [tuple(list(side.ids) for side in each.sides) for each in tokenized]
    )
    expected = response_log_probs(load_causal_lm(model, Loading()).eval(), batch).double().sum(-1)
    assert readings is not None
    assert readings.sums == pytest.approx(expected.detach().numpy(), abs=1e-3)
    assert readings.tokens.tolist() == batch.lengths.tolist()
