"""The arithmetic of the page on preference matching, and the chain of runs behind it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed
from lit_align.data import PreferenceData
from lit_align.models import load_causal_lm, response_log_probs
from lit_align.models.loading import Loading
from lit_align.testbed.tastes import choices, taste_score
from tools.evidence import chain

PROMPTS = [
    "I met Anna. She lives in Oslo. She fears bats. She studies law.\n\nTL;DR:",
    "I met Leo. He plays harp. He keeps hens. He drinks tea.\n\nTL;DR:",
]


@pytest.fixture(scope="module")
def listed() -> list[torch.Tensor]:
    policy = testbed.path("policy")
    model = AutoModelForCausalLM.from_pretrained(policy).eval()
    return chain.listed_log_probs(model, AutoTokenizer.from_pretrained(policy), PROMPTS)


def test_listed_responses_are_spelled_as_the_data_spell_them(listed: list[torch.Tensor], tmp_path: Path) -> None:
    """The same log-probabilities as through the data module, end token included."""
    rows = [
        {"prompt": prompt, "chosen": first, "rejected": second}
        for prompt in PROMPTS
        for first, second in [choices(prompt)[:2]]
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    data = PreferenceData(validation=str(path), tokenizer="testbed:policy", batch_size=2)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))  # type: ignore[arg-type]
    with torch.no_grad():
        expected = response_log_probs(load_causal_lm("testbed:policy", Loading()), batch).double().sum(-1)
    assert [len(each) for each in listed] == [3, 3]
    for row in range(2):
        assert torch.allclose(listed[row][:2], expected[row], atol=1e-4)


def test_numbers_of_a_policy_are_sums_over_the_listed_responses(listed: list[torch.Tensor]) -> None:
    """By hand: KL and the Bernoulli KL of pairs with Python's logarithm, a pair at a time."""
    numbers = chain.policy_numbers(testbed.path("policy"), PROMPTS)
    distances, divergences, minorities, supports = [], [], [], []
    for prompt, log_probs in zip(PROMPTS, listed, strict=True):
        scores = [taste_score(prompt, choice) for choice in choices(prompt)]
        goal = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        probabilities = [math.exp(value) for value in log_probs.tolist()]
        supports.append(sum(probabilities))
        shares = [value / sum(probabilities) for value in probabilities]
        distances.append(sum(p * math.log(p / q) for p, q in zip(goal, shares, strict=True)))
        minorities.append(shares[scores.index(min(scores))])
        for first in range(3):
            for second in range(first):
                p = goal[first] / (goal[first] + goal[second])
                q = shares[first] / (shares[first] + shares[second])
                divergences.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert numbers["exact_kl"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert numbers["given_d2"] == pytest.approx(np.mean(divergences), rel=1e-4)
    assert numbers["minority"] == pytest.approx(np.mean(minorities), rel=1e-4)
    assert numbers["support"] == pytest.approx(np.mean(supports), rel=1e-4)
    assert numbers["panel"]["sums"][0] == 6  # three pairs for each of two prompts
    assert 0.25 <= numbers["distinct"] <= 1


def test_the_goal_has_no_distance() -> None:
    goal = chain.goal_numbers(PROMPTS)
    scores = [[taste_score(prompt, choice) for choice in choices(prompt)] for prompt in PROMPTS]
    shares = [np.exp(own) / np.exp(own).sum() for own in map(np.array, scores)]
    assert goal["exact_kl"] == goal["given_d2"] == 0
    assert goal["entropy"] == pytest.approx(np.mean([stats.entropy(share) for share in shares]))
    assert goal["score"] == pytest.approx(np.mean([share @ own for share, own in zip(shares, scores, strict=True)]))


def numbers_file(runs: Path, step: str, seed: int, values: dict[str, Any], **final: Any) -> None:
    folder = runs / step / f"seed={seed}" / f"x{len(values)}-seed={seed}"
    folder.mkdir(parents=True)
    content = {"setting": "x", "seed": seed, "values": values, "steps": {}, "final": final, "code": ""}
    (folder / "numbers.json").write_text(json.dumps(content))


def test_the_tables_have_intervals_over_seeds(tmp_path: Path) -> None:
    """And shares of the same seed's standard RLHF; a row has the seeds that it has."""
    standard = {"model.objective": "kl_rlhf", "model.objective.beta": 0.1}
    matching = {"model.objective": "conditional_pm_rlhf", "model.objective.beta": 1.0, "model.objective.alpha": 0.1}
    for seed, base, lower in ((1, 1.0, 0.5), (2, 2.0, 0.4), (3, 4.0, 2.2)):
        numbers_file(tmp_path, "sft", seed, {}, exact_kl=0.3)
        numbers_file(tmp_path, "rlhf", seed, matching, exact_kl=lower, d1=1.0, d2=1.0)
        numbers_file(tmp_path, "rlhf", seed, standard, exact_kl=base, d1=2.0, d2=4.0)
    gae = matching | {"model.objective.advantage": "GAE"}
    numbers_file(tmp_path, "gae", 2, gae, exact_kl=1.0, d1=2.0, d2=4.0)
    numbers_file(tmp_path, "reference", 1, {}, entropy=1.5)
    numbers = chain.by_policy(tmp_path, range(10))
    titles = [
        "reference (demonstrations)",
        "standard RLHF, β = 0.1",
        "conditional PM RLHF, β = 1, α = 0.1",
        "conditional PM RLHF, β = 1, α = 0.1, PPO with GAE",
    ]
    assert list(numbers) == titles
    assert numbers[titles[0]][1] == {"exact_kl": 0.3, "entropy": 1.5}
    rows = [line.strip("| ").split(" | ") for line in chain.chain_table(numbers).splitlines()]
    low, high = stats.t.interval(0.95, 2, np.mean([1, 2, 4]), stats.sem([1, 2, 4]))
    assert rows[2][:3] == ["softmax(r), the goal", "", "0.00"]
    assert rows[4][:3] == [titles[1], "3", f"{7 / 3:.2f} ± {(high - low) / 2:.2f}"]
    assert rows[6][:3] == [titles[3], "1", "1.00"]
    lines = [line.strip("| ").split(" | ") for line in chain.improvements(numbers).splitlines()]
    low, high = stats.t.interval(0.95, 2, np.mean([50, 80, 45]), stats.sem([50, 80, 45]))
    assert lines[2] == [titles[2], "3", f"58 ± {(high - low) / 2:.0f}", "50 ± 0", "75 ± 0"]
    assert lines[3] == [titles[3], "1", "50", "0", "0"]
