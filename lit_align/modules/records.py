"""What ``predict`` says about each pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_align.objectives.objective import Objective
from lit_align.types import PairBatch, PairLogProbs

SIDES = ("chosen", "rejected")


def pair_records(logps: PairLogProbs, batch: PairBatch, objective: Objective) -> list[dict[str, Any]]:
    """One plain record per pair, for JSON.

    ``log_ratio`` is log π − log π_ref in nats (log π alone without a reference), as the sum over the response and as
    the mean per token; ``rewards`` and ``margin`` are what the objective makes of it.

    Args:
        logps: log-probabilities of both sides.
        batch: the pairs; copies of weight 0 are left out.
        objective: what the rewards are read from.
    """
    outcome = objective(logps)
    values = logps.policy if logps.reference is None else logps.policy - logps.reference
    sums, lengths = values.double().sum(-1), logps.mask.sum(-1)
    columns: dict[str, Tensor] = {
        "log_ratio_sum": sums,
        "log_ratio_mean": sums / lengths,
        "rewards": outcome.rewards,
        "lengths": lengths,
        "truncated": batch.truncated,
    }
    records = []
    for row in range(len(batch.index)):
        if float(batch.weight[row]) == 0:
            continue
        record: dict[str, Any] = {"index": int(batch.index[row]), "loss": float(outcome.loss[row])}
        for name, column in columns.items():
            record[name] = dict(zip(SIDES, column[row].tolist(), strict=False))
        record["reward_margin"] = float(outcome.rewards[row, 0] - outcome.rewards[row, 1])
        for name in ("margin", "offset", "prompted_margin"):
            value = getattr(outcome, name)
            if value is not None:
                record[name] = float(value[row])
        records.append(record)
    return records
