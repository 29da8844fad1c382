"""Records that ``predict`` writes for each pair."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_align.metrics.pair_values import SIDES
from lit_align.objectives.base import Objective
from lit_align.types import PairBatch, PairLogProbs, map_tensors


def pair_records(logps: PairLogProbs, batch: PairBatch, objective: Objective) -> list[dict[str, Any]]:
    """Build one JSON-serialisable record per pair.

    ``log_ratio`` is log π − log π_ref in nats (log π alone without a reference), as the sum over the response and as
    the mean per token; ``rewards`` and ``margin`` are computed by the objective. A row with one side has no numbers of
    the other side and none that compare the two. Where a pair's loss depends on other pairs, ``loss``,
    ``margin`` and ``offset`` are left out, since they would depend on the batch.

    Args:
        logps: log-probabilities of both sides.
        batch: the pairs; copies of weight 0 are left out.
        objective: computes rewards, margins and losses.
    """
    outcome = objective(logps)
    logps, outcome = map_tensors(logps, _on_cpu), map_tensors(outcome, _on_cpu)
    batch = map_tensors(batch.on_host, _on_cpu)
    values = logps.policy if logps.reference is None else logps.policy - logps.reference
    sums, lengths = values.double().sum(-1), logps.mask.sum(-1)
    columns: dict[str, Tensor] = {
        "log_ratio_sum": sums,
        "log_ratio_mean": sums / lengths,
        "rewards": outcome.rewards,
        "lengths": lengths,
        "truncated": batch.truncated,
    }
    comparisons = () if objective.needs.batch_level else ("margin", "offset", "prompted_margin")
    numbers: dict[str, Tensor | None] = {
        "reward_margin": outcome.rewards[:, 0] - outcome.rewards[:, -1] if outcome.rewards.shape[1] == 2 else None,
        **{name: getattr(outcome, name) for name in comparisons},
    }
    records = []
    for row in range(len(batch.index)):
        if float(batch.weight[row]) == 0:
            continue
        present = logps.mask[row].any(-1).tolist()
        record: dict[str, Any] = {"index": int(batch.index[row])}
        if not objective.needs.batch_level:
            record["loss"] = float(outcome.loss[row])
        for name, column in columns.items():
            record[name] = {
                side: value for side, value, own in zip(SIDES, column[row].tolist(), present, strict=False) if own
            }
        if all(present):
            record |= {name: float(value[row]) for name, value in numbers.items() if value is not None}
        records.append(record)
    return records


def _on_cpu(tensor: Tensor) -> Tensor:
    """Move a tensor to the CPU in one piece: numbers are read one by one from there, without waiting for a device."""
    return tensor.detach().cpu()
