"""Generated responses of the policies of the page on a real model, scored by a reward model of other pairs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_align.sweep.table import last_values
from tools.evidence.sweeps import ROOT, RunNumbers

START = "before-training"
COLUMNS = {
    "tokens": "length/tokens",
    "ended": "ended",
    "score": "score",
    "r of score and length": "score/length_correlation",
    "win rate": "win_rate",
    "length-controlled": "win_rate/length_controlled",
}
"""Head of a column → metric of `evaluate`."""


@dataclass(frozen=True)
class Judge:
    """A reward model and what it says.

    Args:
        accuracy: on the pairs of PandaLM that are tested on, or None before it is trained.
        models: of ``evaluation.json``.
    """

    accuracy: float | None
    models: Sequence[Mapping[str, Any]]


def reward_numbers(run: Path) -> dict[str, Any]:
    """Return the last values of a reward model's run."""
    return {"steps": {}, "final": last_values(run)}


def evaluate(runs: Path, start: str, prompts: Path, most_tokens: int) -> None:
    """Let every policy that was trained by an adapter on labels, and the start, write one response to each prompt.

    Args:
        runs: folder of the page's runs.
        start: folder of the model before training.
        prompts: file of the prompts.
        most_tokens: of a response.
    """
    policies = {policy_name(run): run for run in sorted((runs / "real").glob("seed=*/*-seed=*"))}
    (reward,) = (runs / "real_reward").glob("seed=*/*/reward_model")
    command: list[object] = [
        sys.executable,
        "-m",
        "lit_align",
        "evaluate",
        *(run / "policy" for run in policies.values()),
    ]
    command += ["--names", ",".join([*policies, START]), "--baseline", start, "--prompts", prompts]
    command += ["--judge", f"reward:{reward}", "--reference", "none"]
    command += ["--max_new_tokens", most_tokens, "--into", runs / "evaluation"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def policy_name(run: Path) -> str:
    """Return the name of a policy by the folder of its run: its objective and its seed.

    >>> policy_name(Path("seed=2/averaged_dpo-beta=1.6-seed=2"))
    'averaged-dpo-2'
    """
    objective, _, rest = run.name.partition("-")
    return f"{objective.replace('_', '-')}-{rest.rpartition('=')[2]}"


def read_judge(runs: Path, numbers: Sequence[RunNumbers]) -> Judge:
    """Return the reward model's accuracy and the evaluation, as far as they exist."""
    file = runs / "evaluation" / "evaluation.json"
    models = json.loads(file.read_text("utf-8"))["models"] if file.is_file() else []
    accuracy = numbers[0].final["val/rewards/accuracies"] if numbers else None
    return Judge(accuracy, models)


def judge_table(judge: Judge) -> str:
    """Return a row for each policy, with 95 % intervals over prompts."""
    lines = ["| policy | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for model in sorted(judge.models, key=lambda model: (model["name"] != START, model["name"])):
        cells = [_cell(model["metrics"].get(metric)) for metric in COLUMNS.values()]
        lines.append(f"| {model['name']} | " + " | ".join(cells) + " |")
    if judge.accuracy is not None:
        lines += ["", f"The reward model is right in {100 * judge.accuracy:.0f} % of PandaLM's test pairs."]
    return "\n".join(lines)


def _cell(metric: Mapping[str, float | None] | None) -> str:
    if metric is None:
        return ""
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f}–{high:.2f})"
