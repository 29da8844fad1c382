"""Run folders made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

TRAP = "</script><img src=http://example.org/x onerror=alert(1)> **bold** | cell"
"""A text that would be markup, and a request, if it were not escaped."""
PROMPTS = ["Why is the sky blue?", "Name a fruit.", "Count to three.", TRAP]
EDGES = [-2.0, -1.0, 0.0, 1.0, 2.0]
DISTRIBUTION = {"count": 200, "mean": 31.5, "std": 3.0, "percentiles": {}, "histogram": {}}
SPLIT = {
    "lengths": {
        "pairs": 210,
        "prompt": DISTRIBUTION,
        "chosen": DISTRIBUTION,
        "rejected": {**DISTRIBUTION, "mean": 24.25},
        "gap": {**DISTRIBUTION, "count": 200},
        "longer_wins": {"share": 0.7, "low": 0.63, "high": 0.76},
        "chosen_truncated": 3,
        "rejected_truncated": 4,
    },
    "duplicates": 5,
    "contradictions": 6,
    "seen_prompts": 7,
    "dropped": {"too long": 8, "empty": 1},
}


def write_sweep(folder: Path) -> Path:
    """Write three runs: two that differ in the seed, and one of another β."""
    write_run(folder / "a-0", [[1, 1, 1, 1], [2, 2, 3, 3], [2, 4, 3, 1]], [20, 30, 40])
    write_run(folder / "a-1", [[1, 1, 1, 1], [2, 1, 2, 2], [3, 3, 3, 2]], [20, 24, 28], seed=1)
    write_run(folder / "b", [[1, 1, 1, 1], [0, 1, 0, 1], [5, 3, 4, 4]], [20, 19, 45], beta=0.5)
    write_run(folder / "b" / "previous" / "1", [[1, 1, 1, 1]], [20])
    return folder


def write_run(folder: Path, scores: list[list[float]], lengths: list[float], **settings: Any) -> Path:
    """Write a run that has sampled at steps 0, 10, 20, …; ``scores[k][i]`` is that of prompt i at the k-th of them."""
    folder.mkdir(parents=True)
    rows, samples = [], []
    for place, (own, length) in enumerate(zip(scores, lengths, strict=True)):
        step = 10 * place
        if step:
            rows.append({"step": step, "train/loss": 0.7 - 0.01 * step, "train/grad_norm": 1.0})
            rows.append({"step": step, "val/loss": 0.68, "val/rewards/accuracies": 0.5 + 0.05 * place})
            rows[-1] |= {"val/lengths/margin_correlation": 0.25, "val/rewards/margins": float("nan")}
        mean = sum(own) / len(own)
        rows.append({"step": step, "samples/policy/score": mean, "samples/policy/length/mean": length})
        rows[-1]["samples/policy/eos_rate"] = 0.75
        for prompt, score in zip(PROMPTS, own, strict=True):
            texts = {"policy": f"{folder.name} at {step}: {prompt}", "reference": f"before: {prompt}"}
            samples.append({"step": step, "prompt": prompt, "policy_score": score, "reference_score": 1.0, **texts})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples), "utf-8")
    (folder / "data.json").write_text(json.dumps({"train": SPLIT, "validation": SPLIT, "batches": {}}), "utf-8")
    config = {
        "run": str(folder),
        "task": "preference",
        "seed_everything": settings.pop("seed", 0),
        "model": {
            "policy": "some/model",
            "objective": {"class_path": "lit_align.objectives.dpo", "init_args": {"beta": 0.1, **settings}},
        },
        "trainer": {"max_steps": 10 * (len(scores) - 1), "limit_val_batches": None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    buckets = {"shorter": {"pairs": 50, "won": 20.5, "counts": [5, 24, 20, 1]}, "longer": {"pairs": 0, "won": 0}}
    buckets["longer"]["counts"] = [0, 0, 0, 0]
    (folder / "figures").mkdir()
    (folder / "figures" / "margins.json").write_text(json.dumps({"step": 20, "edges": EDGES, "buckets": buckets}))
    (folder / "environment.json").write_text(json.dumps({"torch": "2.0", "device": "cpu"}), "utf-8")
    return folder


def write_curves(folder: Path, task: str, curves: dict[str, list[float]], **margins: Any) -> Path:
    """Write a run of a task that has reported curves at steps 5, 10, …, and counts of margins."""
    (folder / "figures").mkdir(parents=True)
    count = max(map(len, curves.values()))
    rows = [{"step": 5 * place + 5, **{key: own[place] for key, own in curves.items()}} for place in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": str(folder), "task": task}), "utf-8")
    if margins:
        (folder / "figures" / "margins.json").write_text(json.dumps({"edges": EDGES, "buckets": {}, **margins}))
    return folder
