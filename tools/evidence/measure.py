"""Numbers of a finished run on the testbed that are not among its metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import testbed
from lit_align.evaluation.policy_measures import policy_rows
from lit_align.evaluation.win_rates import comparison
from lit_align.sweep.table import last_values
from lit_align.testbed.preferences import read_rows

PAIRS = 60
"""Pairs of the test split on which the log-ratio of each side is kept."""


def measure(run: Path) -> dict[str, Any]:
    """Return the samples' mean length and score of each step, and what the final policy prefers.

    Args:
        run: folder of a run with ``samples`` on validation prompts and an exported policy.
    """
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in (run / "samples.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        by_step.setdefault(row["step"], []).append(row)
    steps = {
        str(step): {"length": _mean(rows, "policy_tokens"), "score": _mean(rows, "policy_score")}
        for step, rows in by_step.items()
    }
    last = by_step[max(by_step)]
    first = {row["prompt"]: row for row in by_step[0]}
    start = [first[row["prompt"]] for row in last]
    pairs = list(zip(last, start, strict=True))
    policy = AutoModelForCausalLM.from_pretrained(run / "policy").eval()
    return {
        "steps": steps,
        "final": {
            "score": [row["policy_score"] for row in last],
            "length": [row["policy_tokens"] for row in last],
            "won": [comparison(row["policy_score"], other["policy_score"]) for row, other in pairs],
            "longer": [len(row["policy"]) - len(other["policy"]) for row, other in pairs],
            "kl": _divergence(policy, last),
            "log_ratio": _log_ratios(policy),
            "metrics": {name: value for name, value in last_values(run).items() if name.startswith("val/")},
        },
    }


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return sum(float(row[key]) for row in rows) / len(rows)


def _divergence(policy: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Return KL(policy ‖ reference) in nats, along the policy's own responses."""
    sequences = []
    for row in rows:
        ids = _ids(row["policy"])
        sequences.append((_prompt(row["prompt"]), ids if len(ids) == row["policy_tokens"] else [*ids, _end()]))
    measured = policy_rows(policy, _reference(), [each for each in sequences if each[1]], batch_size=50)
    return sum(each.kl or 0.0 for each in measured) / len(measured)


def _log_ratios(policy: Any) -> list[list[float]]:
    """Return log π - log π_ref of chosen and rejected of the first pairs of the test split."""
    own = [each.log_prob for each in policy_rows(policy, None, _drafts(), batch_size=50)]
    ratios = [mine - other for mine, other in zip(own, _reference_log_probs(), strict=True)]
    return [ratios[place : place + 2] for place in range(0, len(ratios), 2)]


@cache
def _reference_log_probs() -> list[float]:
    return [each.log_prob for each in policy_rows(_reference(), None, _drafts(), batch_size=50)]


@cache
def kept_pairs() -> list[dict[str, str]]:
    """Return the pairs on which log-ratios are kept."""
    return read_rows(testbed.path("test.jsonl"))[:PAIRS]


def draft_length(text: str) -> int:
    """Return the tokens of a response, with the one that ends it."""
    return len(_ids(text)) + 1


@cache
def _drafts() -> list[tuple[list[int], list[int]]]:
    return [
        (_prompt(row["prompt"]), [*_ids(row[side]), _end()]) for row in kept_pairs() for side in ("chosen", "rejected")
    ]


@cache
def _reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(testbed.path("policy")).eval()


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(testbed.path("policy"))


def _end() -> int:
    return int(_tokenizer().eos_token_id)


def _prompt(text: str) -> list[int]:
    return list(_tokenizer()(text).input_ids)


def _ids(text: str) -> list[int]:
    return list(_tokenizer()(text, add_special_tokens=False).input_ids)


torch.set_num_threads(1)
