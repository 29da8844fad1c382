"""Predictions of a row contain exactly what the row provides."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest

from lit_align.modules.predict import pair_records
from lit_align.objectives import aot, dpo
from lit_align.objectives.base import Needs, Objective
from lit_align.types import Outcome, PairLogProbs
from tests.metrics.examples import batch_of, logps_of, outcome_of


@dataclass(frozen=True)
class Judging(Objective):
    """Rewards are sums; the loss of a pair looks at all of them."""

    needs = Needs(batch_level=True, unpaired=True)

    def __call__(self, logps: PairLogProbs) -> Outcome:
        return outcome_of((logps.policy * logps.mask).sum(-1).tolist())


def test_a_whole_pair() -> None:
    """-3 + 2 = -1 in two tokens against -1 + 1 = 0; β 0.1, loss -log σ(-0.1)."""
    logps = logps_of([[[-1.0, -2.0], [-1.0]]], reference=-1.0)
    (record,) = pair_records(logps, batch_of(logps), dpo(beta=0.1))
    assert record["log_ratio_sum"] == {"chosen": -1.0, "rejected": 0.0}
    assert record["log_ratio_mean"] == {"chosen": -0.5, "rejected": 0.0}
    assert record["loss"] == pytest.approx(math.log(1 + math.exp(0.1)))
    assert record["margin"] == pytest.approx(-1.0)
    assert record["reward_margin"] == pytest.approx(-0.1)


def test_a_row_with_one_side_says_nothing_of_the_other() -> None:
    logps = logps_of([[[-1.0], []], [[], [-3.0, -1.0]], [[-2.0], [-4.0]]])
    found = pair_records(logps, batch_of(logps), Judging())
    assert [sorted(record["rewards"]) for record in found] == [["chosen"], ["rejected"], ["chosen", "rejected"]]
    assert found[1]["log_ratio_mean"] == {"rejected": -2.0}
    assert found[1]["lengths"] == {"rejected": 2}
    assert ["reward_margin" in record for record in found] == [False, False, True]
    assert "NaN" not in json.dumps(found)


def test_a_loss_that_depends_on_other_pairs_is_left_out() -> None:
    logps = logps_of([[[-1.0], [-2.0]]])
    (record,) = pair_records(logps, batch_of(logps), Judging())
    assert "loss" not in record
    assert record["reward_margin"] == 1.0


@pytest.mark.parametrize("size", [1, 3])
def test_no_number_depends_on_the_batch(size: int) -> None:
    """Losses across pairs are not per-pair values, so only values of a single pair are written."""
    logps = logps_of([[[-1.0], [-2.0]], [[-5.0], [-1.0]], [[-1.0], [-4.0]]])
    batch = batch_of(logps)
    parts = [slice(start, start + size) for start in range(0, 3, size)]
    found = [record for part in parts for record in pair_records(logps.rows(part), batch.rows(part), aot(beta=1.0))]
    assert [record["reward_margin"] for record in found] == [1.0, -4.0, 3.0]
    assert all("margin" not in record and "loss" not in record for record in found)


def test_copies_are_left_out() -> None:
    logps = logps_of([[[-1.0], [-2.0]]] * 2)
    assert [record["index"] for record in pair_records(logps, batch_of(logps, [1.0, 0.0]), dpo())] == [0]
