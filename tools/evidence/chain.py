"""Demonstrations, reward model and RLHF on the task of tastes: their sweeps, and the numbers of each policy."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.comparison.numbers import t_interval
from lit_align.evaluation.policy_measures import policy_rows
from lit_align.metrics.calibration import MatchingDivergence
from lit_align.metrics.figures import draw_matching
from lit_align.models.generation import CachedGenerator, GenerationRequest
from lit_align.models.sampling import Sampling, mix_seed
from lit_align.online import PairedPreferences, matching_kl
from lit_align.sweep.table import last_values
from lit_align.testbed import preferences, tastes
from lit_align.testbed.tastes import choices, taste_score
from tools.evidence.intervals import with_interval
from tools.evidence.sweeps import FINISHED, ROOT, RunNumbers, read_numbers, sweep_seeds, write_numbers

DATA = ROOT / "runs" / "pm_testbed" / "data"
"""Where the configurations of the three steps look for their rows."""
SIZES = {"habits.jsonl": 6400, "tastes.jsonl": 6400, "prompts.jsonl": 4000, "tastes_validation.jsonl": 200}
SAMPLED = 4
"""Responses that are sampled to each prompt."""
COLUMNS = {
    "exact KL to softmax(r)": "exact_kl",
    "D2 on listed pairs": "given_d2",
    "D1 on own pairs": "d1",
    "D2 on own pairs": "d2",
    "true score": "score",
    "length": "length",
    "entropy": "entropy",
    "distinct": "distinct",
    "minority share": "minority",
    "on listed responses": "support",
}
VALIDATED = {"val/matching/d1": "d1", "val/matching/d2": "d2", "val/entropy": "entropy"}
"""Metric of a run's last validation → what it is called here."""
OBJECTIVES = {"kl_rlhf": "standard RLHF", "pm_rlhf": "PM RLHF", "conditional_pm_rlhf": "conditional PM RLHF"}
REFERENCE, STANDARD = "reference (demonstrations)", "standard RLHF, β = 0.1"
BY_GAE = ", PPO with GAE"
Numbers = dict[str, Any]
ByPolicy = dict[str, dict[int, Numbers]]
"""Title of a policy → seed → its numbers."""


# ── runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sweep_chain(runs: Path, seeds: Sequence[int]) -> None:
    """Write the data, and run the steps of each seed that have not finished."""
    write_data()
    grids = ROOT / "tools" / "grids"
    sweep_seeds(grids / "matching_sft.yaml", runs / "sft", seeds, measure)
    sweep_seeds(grids / "matching_reward.yaml", runs / "reward", seeds, lambda run: {"steps": {}, "final": {}})
    for seed in seeds:
        validate_reference(runs, seed)
    sweep_seeds(grids / "matching.yaml", runs / "rlhf", seeds, measure)
    sweep_seeds(grids / "matching_gae.yaml", runs / "gae", seeds, measure)


def write_data() -> None:
    """Write the rows of the three steps, the same for all seeds."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name in SIZES:
        preferences.write_rows(DATA / name, rows_of(name))


def rows_of(name: str) -> list[preferences.Row]:
    """Return the rows of a file of the data."""
    sample = tastes.sample_habits if name == "habits.jsonl" else tastes.sample_tastes
    rows = sample(SIZES[name], list(SIZES).index(name))
    return [{"prompt": row["prompt"]} for row in rows] if name == "prompts.jsonl" else rows


def validate_reference(runs: Path, seed: int) -> None:
    """Let the reward model judge pairs of the policy before alignment, unless that was done."""
    folder = runs / "reference" / f"seed={seed}" / "run"
    if (folder.parent / FINISHED).is_file():
        return
    models = {"model.policy": "sft", "model.score.path": "reward"}
    exports = {"sft": "policy", "reward": "reward_model"}
    config = ROOT / "configs" / "experiment" / "pm_testbed" / "rlhf.yaml"
    command = [sys.executable, "-m", "lit_align", "validate", "--config", config, "--run", folder]
    for key, step in models.items():
        command += [f"--{key}", runs / step / f"seed={seed}" / f"run-seed={seed}" / exports[step]]
    subprocess.run([*map(str, command), "--seed_everything", str(seed)], cwd=ROOT, check=True)
    write_numbers(folder, RunNumbers(REFERENCE, seed, {}, steps={}, final=validated(folder), code=""))
    (folder.parent / FINISHED).write_text("")


def measure(run: Path) -> Numbers:
    """Return the numbers of the policy that a run has exported."""
    return {"steps": {}, "final": policy_numbers(run / "policy", prompts()) | validated(run)}


@cache
def prompts() -> tuple[str, ...]:
    """Return the prompts that policies are compared on, those of the validation."""
    return tuple(row["prompt"] for row in rows_of("tastes_validation.jsonl"))


def validated(run: Path) -> dict[str, float]:
    """Return the divergences from the reward model, and the entropy, of a run's last validation."""
    last = last_values(run)
    return {key: last[name] for name, key in VALIDATED.items() if name in last}


def policy_numbers(policy: Path, asked: Sequence[str]) -> Numbers:
    """Measure a policy by the probabilities of the sensible responses, and by responses that it samples."""
    tokenizer, model = AutoTokenizer.from_pretrained(policy), AutoModelForCausalLM.from_pretrained(policy).eval()
    values: dict[str, list[float]] = {"exact_kl": [], "given_d2": [], "minority": [], "support": []}
    panel = MatchingDivergence()
    for prompt, log_probs in zip(asked, listed_log_probs(model, tokenizer, asked), strict=True):
        score = torch.tensor([taste_score(prompt, choice) for choice in choices(prompt)], dtype=torch.float64)
        first, second = torch.triu_indices(len(score), len(score), 1)
        pairs = PairedPreferences(score[first] - score[second], log_probs[first] - log_probs[second])
        panel.update(pairs, torch.ones(len(first)))
        values["exact_kl"].append(float(matching_kl(score, log_probs)))
        values["given_d2"].append(float(pairs.bernoulli().mean()))
        values["minority"].append(float(log_probs.softmax(-1)[score.argmin()]))
        values["support"].append(float(log_probs.exp().sum()))
    states = {name: getattr(panel, name).tolist() for name in ("sums", "scores", "policy", "curve")}
    means = {name: statistics.mean(own) for name, own in values.items()}
    return means | sampled_numbers(model, tokenizer, asked) | {"panel": states}


def listed_log_probs(model: Any, tokenizer: Any, asked: Sequence[str]) -> list[Tensor]:
    """Return log π(y | x) of the sensible responses to each prompt, with the end token."""
    sequences = [
        (
            tokenizer(prompt).input_ids,
            [*tokenizer(choice, add_special_tokens=False).input_ids, tokenizer.eos_token_id],
        )
        for prompt in asked
        for choice in choices(prompt)
    ]
    rows = policy_rows(model, None, sequences, batch_size=150)
    whole = torch.tensor([row.log_prob for row in rows], dtype=torch.float64)
    return list(whole.split([len(choices(prompt)) for prompt in asked]))


@torch.no_grad()
def sampled_numbers(model: Any, tokenizer: Any, asked: Sequence[str]) -> dict[str, float]:
    """Return true score, length, and share of different responses, of some that are sampled to each prompt."""
    requests = [
        GenerationRequest(tokenizer(prompt).input_ids, mix_seed(row, number))
        for row, prompt in enumerate(asked)
        for number in range(SAMPLED)
    ]
    sampling = Sampling(max_new_tokens=10)
    written = CachedGenerator(200)(model, requests, {tokenizer.eos_token_id}, tokenizer.pad_token_id, sampling)
    texts = [tokenizer.decode(response.content) for response in written]
    groups = [texts[start : start + SAMPLED] for start in range(0, len(texts), SAMPLED)]
    repeated = [prompt for prompt in asked for _ in range(SAMPLED)]
    return {
        "score": statistics.mean(map(taste_score, repeated, texts)),
        "length": statistics.mean(len(response.ids) for response in written),
        "distinct": statistics.mean(len(set(group)) / SAMPLED for group in groups),
    }


# ── page ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_policy(runs: Path, seeds: Container[int]) -> ByPolicy:
    """Return the numbers of all policies of these seeds, the reference first, then in the order of the grids."""
    numbers: ByPolicy = {REFERENCE: {}}
    for step in ("sft", "reference"):
        for run in read_numbers(runs / step, seeds):
            numbers[REFERENCE][run.seed] = numbers[REFERENCE].get(run.seed, {}) | run.final
    variants = [run for step in ("rlhf", "gae") for run in read_numbers(runs / step, seeds)]
    for run in sorted(variants, key=_place):
        numbers.setdefault(title_of(run.values), {})[run.seed] = dict(run.final)
    return numbers


def _place(run: RunNumbers) -> tuple[bool, int, float, int]:
    """Return the place of a run's row in the table."""
    objective = list(OBJECTIVES).index(run.values["model.objective"])
    return _is_by_gae(run.values), objective, -float(run.values.get("model.objective.alpha", 0)), run.seed


def title_of(values: Mapping[str, Any]) -> str:
    """Return what a policy is called by the settings of its run.

    >>> title_of({"model.objective": "conditional_pm_rlhf", "model.objective.beta": 1.0, "model.objective.alpha": 0.1})
    'conditional PM RLHF, β = 1, α = 0.1'
    """
    symbols = {"beta": "β", "alpha": "α"}
    knobs = {symbol: values.get(f"model.objective.{name}") for name, symbol in symbols.items()}
    parts = [f", {symbol} = {value:g}" for symbol, value in knobs.items() if value is not None]
    return OBJECTIVES[values["model.objective"]] + "".join(parts) + (BY_GAE if _is_by_gae(values) else "")


def _is_by_gae(values: Mapping[str, Any]) -> bool:
    return bool(values.get("model.objective.advantage") == "GAE")


def tables(numbers: ByPolicy) -> dict[str, str]:
    """Return the tables of the page by the names of their marks."""
    return {"chain": chain_table(numbers), "improvements": improvements(numbers)}


def chain_table(numbers: ByPolicy) -> str:
    """Return a row for each policy, the goal first, with means and 95 % intervals over seeds."""
    lines = ["| policy | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    goal = goal_numbers(prompts())
    lines.append(_row("softmax(r), the goal", "", {key: [value] for key, value in goal.items()}))
    for title, seeds in numbers.items():
        values = {key: [own[key] for own in seeds.values() if key in own] for key in COLUMNS.values()}
        lines.append(_row(title, str(len(seeds)), values))
    return "\n".join(lines)


def _row(title: str, seeds: str, values: Mapping[str, Sequence[float]]) -> str:
    cells = [with_interval(t_interval(values[key])) if values.get(key) else "" for key in COLUMNS.values()]
    return f"| {title} | {seeds} | {' | '.join(cells)} |"


def goal_numbers(asked: Iterable[str]) -> dict[str, float]:
    """Return the numbers of softmax(r) itself."""
    scores = [torch.tensor([taste_score(prompt, choice) for choice in choices(prompt)]) for prompt in asked]
    shares = [score.softmax(-1) for score in scores]
    return {
        "exact_kl": 0.0,
        "given_d2": 0.0,
        "score": statistics.mean(float((share * score).sum()) for share, score in zip(shares, scores, strict=True)),
        "entropy": statistics.mean(float(-(share * share.log()).sum()) for share in shares),
        "minority": statistics.mean(float(share.min()) for share in shares),
        "support": 1.0,
    }


def improvements(numbers: ByPolicy) -> str:
    """Return by how many per cent divergences are lower than those of standard RLHF with the same seed."""
    distances = {"exact KL": "exact_kl", "D1 on own pairs": "d1", "D2 on own pairs": "d2"}
    lines = ["| policy | seeds | " + " | ".join(f"{name} (%)" for name in distances) + " |", "|---" * 5 + "|"]
    base = numbers[STANDARD]
    for title, own in numbers.items():
        seeds = [seed for seed in own if seed in base]
        if title in (REFERENCE, STANDARD) or not seeds:
            continue
        lower = [[100 * (1 - own[seed][key] / base[seed][key]) for seed in seeds] for key in distances.values()]
        cells = [with_interval(t_interval(values), 0) for values in lower]
        lines.append(f"| {title} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_chain(numbers: ByPolicy, file: Path) -> None:
    """Draw the preferences of all policies but those by GAE against the true ones, over all seeds."""
    panels = {}
    for title, seeds in numbers.items():
        if title.endswith(BY_GAE) or not seeds:
            continue
        panel = panels[title.replace(", ", "\n", 1).replace(" (", "\n(")] = MatchingDivergence()
        for own in seeds.values():
            for name, state in own["panel"].items():
                getattr(panel, name).add_(torch.tensor(state, dtype=torch.float64))
    draw_matching(panels, file)
