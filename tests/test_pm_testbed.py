"""The numbers of the tool: its lists, its comparisons, its output."""

from __future__ import annotations

import json
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align import testbed
from lit_align.data import PreferenceData
from lit_align.metrics.calibration import MatchingDivergence
from lit_align.models import load_causal_lm, response_log_probs
from lit_align.models.loading import Loading
from lit_align.testbed.tastes import choices

TOOL = Path(__file__).parents[1] / "tools" / "pm_testbed"
PROMPTS = [
    "I met Anna. She lives in Oslo. She fears bats. She studies law.\n\nTL;DR:",
    "I met Leo. He plays harp. He keeps hens. He drinks tea.\n\nTL;DR:",
]


@pytest.fixture(scope="module")
def tool() -> Any:
    loader = SourceFileLoader("pm_testbed", str(TOOL))
    spec = spec_from_loader("pm_testbed", loader)
    assert spec is not None
    module = module_from_spec(spec)
    sys.modules["pm_testbed"] = module
    loader.exec_module(module)
    return module


def test_listed_responses_are_spelled_as_the_data_spell_them(tool: Any, tmp_path: Path) -> None:
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
        wanted = response_log_probs(load_causal_lm("testbed:policy", Loading()), batch).double().sum(-1)
    found = tool.listed_log_probs(testbed.path("policy"), PROMPTS)
    assert [len(each) for each in found] == [3, 3]
    for row in range(2):
        assert torch.allclose(found[row][:2], wanted[row], atol=1e-4)


def test_the_goal_has_no_distance(tool: Any) -> None:
    line = tool.wanted(PROMPTS)
    assert line.startswith("| softmax(r), the goal | 0.00 | 0.00 |")


def test_numbers_of_a_policy(tool: Any) -> None:
    panel = MatchingDivergence()
    found = tool.numbers(testbed.path("policy"), PROMPTS, panel)
    assert set(tool.COLUMNS.values()) - {"d1", "d2", "entropy"} == found.keys()
    assert 0 < found["support"] < 1
    assert found["exact_kl"] > 0
    assert float(panel.sums[0]) == 6  # three pairs for each of two prompts


def test_improvements_are_shares_of_the_same_seed(tool: Any) -> None:
    base = [{"exact_kl": 1.0, "d1": 2.0, "d2": 1.0}, {"exact_kl": 2.0, "d1": 2.0, "d2": 1.0}]
    own = [{"exact_kl": 0.5, "d1": 1.0, "d2": 2.0}, {"exact_kl": 1.0, "d1": 1.0, "d2": 2.0}]
    lines = tool.improvements({"reference": base, "kl": base, "cpm": own})
    assert [line.split(": ")[1] for line in lines] == [
        "exact KL lower by 50 ± 0 %",
        "D1 lower by 50 ± 0 %",
        "D2 lower by -100 ± 0 %",
    ]


def test_what_it_asks_of_the_command_line_is_what_the_configs_have(tool: Any) -> None:
    for name in ("sft.yaml", "reward.yaml", "rlhf.yaml"):
        assert (tool.CONFIGS / name).is_file()
    for _, (preset, *_) in tool.WAYS.values():
        assert preset in ("kl_rlhf", "pm_rlhf", "conditional_pm_rlhf")
