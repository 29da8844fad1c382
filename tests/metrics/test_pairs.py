"""Metrics are sums and counts: the same for any split, and nothing but the Outcome."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_align.metrics import PairMetrics
from lit_align.objectives import SFT, Logistic, PreferenceObjective, Term, WeightedSum
from lit_align.types import Outcome, PairBatch, PairLogProbs
from tests.metrics.examples import batch_of, logps_of, outcome_of


def made_up(pairs: int, sides: int = 2) -> tuple[Outcome, PairLogProbs, PairBatch]:
    """Random outcomes of ``pairs`` pairs with random lengths."""
    generator = torch.Generator().manual_seed(pairs)
    lengths = torch.randint(1, 6, (pairs, sides), generator=generator)
    mask = torch.arange(6) < lengths.unsqueeze(-1)
    policy = -torch.rand(pairs, sides, 6, generator=generator) * mask
    values = torch.randn(5, pairs, generator=generator)
    outcome = Outcome(
        loss=values[0], rewards=torch.randn(pairs, sides, generator=generator), margin=values[1], offset=values[2]
    )
    flags = torch.zeros(pairs, sides, dtype=torch.bool)
    flags[0, 0] = True
    batch = PairBatch(
        input_ids=torch.zeros(pairs, sides, 6, dtype=torch.long),
        attention_mask=mask,
        mask=mask,
        truncated=flags,
        weight=torch.ones(pairs),
        index=torch.arange(pairs),
    )
    return outcome, PairLogProbs(policy, None, mask), batch


def part(whole: tuple[Outcome, PairLogProbs, PairBatch], rows: slice) -> tuple[Outcome, PairLogProbs, PairBatch]:
    outcome, logps, batch = whole
    return (
        Outcome(outcome.loss[rows], outcome.rewards[rows], outcome.margin[rows], outcome.offset[rows]),
        PairLogProbs(logps.policy[rows], None, logps.mask[rows]),
        PairBatch(
            batch.input_ids[rows],
            batch.attention_mask[rows],
            batch.mask[rows],
            batch.truncated[rows],
            batch.weight[rows],
            batch.index[rows],
        ),
    )


def means(*parts: tuple[Outcome, PairLogProbs, PairBatch]) -> dict[str, float]:
    metrics = PairMetrics()
    for one in parts:
        metrics.update(*one)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_against_numpy() -> None:
    whole = made_up(11)
    outcome, logps, batch = whole
    found = means(whole)
    gap = (batch.mask.sum(-1)[:, 0] - batch.mask.sum(-1)[:, 1]).numpy()
    margins = (outcome.rewards[:, 0] - outcome.rewards[:, 1]).numpy()
    assert found["loss"] == pytest.approx(float(outcome.loss.mean()))
    assert found["rewards/margins"] == pytest.approx(margins.mean())
    assert found["rewards/accuracies"] == pytest.approx((margins > 0).mean())
    assert found["margin/refined"] == pytest.approx(float((outcome.margin - outcome.offset).mean()))
    assert found["log_probs/chosen/mean"] == pytest.approx(
        float((logps.policy[:, 0].sum(-1) / logps.mask[:, 0].sum(-1)).mean())
    )
    assert found["lengths/truncated"] == pytest.approx(1 / 22)
    assert found["lengths/margin_correlation"] == pytest.approx(np.corrcoef(margins, gap)[0, 1], rel=1e-5)


def test_any_split_gives_the_same_numbers() -> None:
    whole = made_up(11)
    split = means(part(whole, slice(0, 1)), part(whole, slice(1, 8)), part(whole, slice(8, 11)))
    assert split == pytest.approx(means(whole), rel=1e-6)


def test_a_mean_of_batch_means_would_be_wrong() -> None:
    """The wrong variant: averages of unequal batches differ from the average."""
    whole = made_up(11)
    first, second = means(part(whole, slice(0, 1))), means(part(whole, slice(1, 11)))
    assert (first["loss"] + second["loss"]) / 2 != pytest.approx(means(whole)["loss"], rel=1e-3)


def test_rows_of_weight_zero_are_not_there() -> None:
    whole = made_up(11)
    whole[2].weight[4:] = 0
    assert means(whole) == pytest.approx(means(part(whole, slice(0, 4))), rel=1e-6)


def test_ties_count_one_half() -> None:
    outcome, logps, batch = made_up(2)
    tied = Outcome(outcome.loss, torch.zeros(2, 2))
    assert means((tied, logps, batch))["rewards/accuracies"] == 0.5


def test_what_is_not_formed_is_absent() -> None:
    outcome, logps, batch = made_up(3, sides=1)
    found = means((Outcome(outcome.loss, outcome.rewards), logps, batch))
    assert not [name for name in found if "rejected" in name or "margin" in name or "accuracies" in name]
    assert {"loss", "rewards/chosen", "lengths/chosen"} <= set(found)


class Sloped(PreferenceObjective):
    """An objective that defines its own slopes."""

    def __init__(self) -> None:
        super().__init__(Logistic())

    def slope(self, logps, outcome):
        return torch.tensor([0.5, 1e-7, 0.0, 0.1])


@pytest.mark.fault("B16")
def test_saturated_pairs_are_counted() -> None:
    outcome, logps, batch = made_up(4)
    metrics = PairMetrics(Sloped())
    metrics.update(outcome, logps, batch)
    found = metrics.compute()
    assert found["margin/saturated"] == 0.5


def test_terms_are_reported_under_their_names() -> None:
    outcome, logps, batch = made_up(3)
    metrics = PairMetrics(WeightedSum((Term("likelihood", SFT()),)))
    metrics.update(replace(outcome, terms={"likelihood": torch.tensor([1.0, 2.0, 6.0])}), logps, batch)
    assert float(metrics.compute()["loss/likelihood"]) == 3.0


def test_of_unpaired_rows_the_side_that_is_there_counts() -> None:
    """Chosen alone, rejected alone, both: means over the present sides, comparisons over the one whole pair."""
    logps = logps_of([[[-1.0], []], [[], [-3.0, -3.0]], [[-2.0, -2.0], [-4.0]]])
    metrics = PairMetrics(from_start=True)
    metrics.update(outcome_of([[1.0, 9.0], [9.0, 2.0], [5.0, 4.0]]), logps, batch_of(logps))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert all(np.isfinite(value) for value in found.values())
    assert found["loss"] == 1.0
    assert (found["rewards/chosen"], found["rewards/rejected"]) == (3.0, 3.0)
    assert (found["rewards/margins"], found["rewards/accuracies"]) == (1.0, 1.0)
    assert (found["lengths/chosen"], found["lengths/rejected"], found["lengths/gap"]) == (1.5, 1.5, 1.0)
    assert found["log_probs/chosen/sum"] == (-1.0 - 4.0) / 2
    assert found["log_probs/rejected/mean"] == (-3.0 - 4.0) / 2
    assert found["displacement/rejected/sum"] == (-6.0 - 4.0) / 2
    assert found["margin/by_sum"] == 0.0


def test_without_a_whole_pair_nothing_is_compared() -> None:
    logps = logps_of([[[-1.0], []], [[], [-3.0]]])
    metrics = PairMetrics()
    metrics.update(outcome_of([[1.0, 0.0], [0.0, 2.0]]), logps, batch_of(logps))
    assert not [name for name in metrics.compute() if "margin" in name or "accuracies" in name or "gap" in name]


def test_what_an_absent_side_holds_does_not_matter() -> None:
    logps = logps_of([[[-1.0], []], [[-2.0], [-1.0]]])
    metrics = PairMetrics()
    metrics.update(outcome_of([[1.0, float("nan")], [3.0, 2.0]]), logps, batch_of(logps))
    assert all(bool(value.isfinite()) for value in metrics.compute().values())
